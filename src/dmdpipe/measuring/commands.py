"""``dmdpipe measure``: copying in models and samples that no study has made; ``dmdpipe cost``: what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dmdpipe.errors import UserError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

LONGEST_NAME = 40  # letters
GIGA, TERA, PETA = 1e9, 1e12, 1e15
BYTES, DOUBLE = 4, 8  # of a number: in networks and samples, in metrics
LARGEST_NUMBER = 1e38  # of a sample: as of the float32 that models answer in; squares of more can overflow
HELD_OUT = 4  # times as many noises as pairs go to the teacher alone
MOST = 10**12  # of anything that is counted: what can be computed with is far below
MOST_STEPS = 10**6
MOST_TFLOPS = 1e6
HIGHEST_SIGMA = 1e6  # the largest of a schedule is 2·10⁴, that of a cosine


def measure(
    teacher: Annotated[
        Path | None, typer.Option("--teacher", help="a step's folder, or weights with an adapter")
    ] = None,
    student: Annotated[Path | None, typer.Option("--student", help="likewise")] = None,
    pairs: Annotated[
        tuple[Path, Path] | None, typer.Option("--pairs", help="instead: two .npy files of paired samples")
    ] = None,
    z: Annotated[Path | None, typer.Option("--z", help="with --pairs: a .npy file of their noise")] = None,
    noise: Annotated[int, typer.Option("--noise", min=2, max=MOST, help="number of noises that both get")] = 1_000,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=0, max=MOST, help="further noises for the teacher; 4 times as many")
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=1, max=MOST_STEPS, help="intervals of the teacher's sampler")
    ] = 64,
    sigma_max: Annotated[
        float | None,
        typer.Option(
            "--sigma-max", min=1e-3, max=HIGHEST_SIGMA, help="noise level at the start; the student's own (80)"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the noise")] = 0,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="JSON that says what weights mean")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=MOST, help="samples at a time")] = 1_024,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    out: Annotated[Path, typer.Option("--out", help="a new folder for tables and figure")] = Path("measured"),
) -> None:
    """Measure whether a student copies its teacher: the same noise goes through both. Nothing is trained.

    Teacher and student are folders of steps (teachers/…, students/…, members/…), folders of a U-Net as diffusers saves
    it, the name of one on the Hugging Face hub (owner/name), or .safetensors files; what weights that are no step's
    mean, an adapter says: --adapter, or adapter.json in the folder, or a .json beside the file. With --pairs, samples
    that you have already are measured.

    \b
    dmdpipe measure --teacher results/teachers/T --student results/students/S
    dmdpipe measure --teacher edm --student distilled --noise 256 --steps 32 --out copying
    dmdpipe measure --pairs teacher.npy student.npy --z noise.npy
    """
    from dmdpipe.measuring.report import check_target

    if (pairs is None) == (teacher is None and student is None) or (pairs is None and not (teacher and student)):
        raise UserError("give --teacher and --student, or --pairs and nothing of these")
    if z and not pairs:
        raise UserError("--z is the noise of --pairs; --teacher and --student get theirs from the noise bank")
    check_target(out)
    if pairs:
        _measure_pairs(pairs, z, out)
    else:
        assert teacher and student
        options = {"noise": noise, "steps": steps, "seed": seed, "batch": batch, "device": device}
        _measure_models(teacher, student, adapter, sigma_max, held_out, options, out)


def cost(
    adapter: Annotated[Path, typer.Argument(help="JSON that says what the weights mean; network.kind adm")],
    noise: Annotated[int, typer.Option("--noise", min=2, max=MOST, help="as of dmdpipe measure")] = 1_000,
    held_out: Annotated[
        int | None, typer.Option("--held-out", min=0, max=MOST, help="likewise; 4 times as many")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, max=MOST_STEPS, help="likewise")] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, max=MOST, help="likewise: samples at a time")] = 64,
    rate: Annotated[
        float,
        typer.Option("--tflops", min=1e-6, max=MOST_TFLOPS, help="operations a second that are kept up, in 1e12"),
    ] = 25,
    device: Annotated[str, typer.Option("--device", help="with --time: cpu or cuda")] = "cpu",
    timed: Annotated[bool, typer.Option("--time", help="measure the rate here, by random weights at --batch")] = False,
) -> None:
    """Print what a measurement will take: parameters, operations, calls, hours and memory. Reads no weights.

    \b
    dmdpipe cost config/released/imagenet64.json --noise 1000 --held-out 4000 --steps 32
    dmdpipe cost config/released/imagenet64.json --tflops 40
    """
    from dmdpipe.copying.baselines import PAIRS_PER_DIMENSION
    from dmdpipe.measuring.cost import call, seconds_of_a_call
    from dmdpipe.measuring.models import read_adapter

    network = read_adapter(adapter).network
    if network.kind != "adm":
        raise UserError(f"{adapter}: network.kind '{network.kind}': the cost of an 'adm' alone is known")
    one, d = call(network), network.img_channels * network.img_resolution**2
    extra = HELD_OUT * noise if held_out is None else held_out
    calls = {
        f"T of {noise} noises, {steps} intervals": noise * (2 * steps - 1),
        f"T of them, {2 * steps} intervals (rho_floor)": noise * (4 * steps - 1),
        f"T of {extra} held-out noises": extra * (2 * steps - 1),
        f"S of {noise} noises": noise,
    }
    typer.echo(f"network      {one.parameters:,} parameters; samples of {d:,} numbers")
    typer.echo(f"one call     {one.operations / GIGA:.1f} GFLOP a sample (a product and a sum are two)")
    for what, number in calls.items():
        typer.echo(f"calls        {number:>11,}  {what}")
    total = sum(calls.values())
    typer.echo(f"             {total:>11,}  together: {total * one.operations / PETA:,.0f} PFLOP")
    how = "assumed, --tflops"
    if timed:
        rate = batch * one.operations / seconds_of_a_call(network, batch, checked_device(device)) / TERA
        how = f"measured on {device}, {batch} samples at a time"
    typer.echo(f"time         {total * one.operations / TERA / rate / 3600:,.2f} h at {rate:.3g} TFLOP/s ({how})")
    weights, live = BYTES * one.parameters, BYTES * batch * one.living
    typer.echo(f"memory       {2 * weights / GIGA:.2f} GB for the weights of two networks")
    typer.echo(f"             about {live / GIGA:.2f} GB for {batch} samples in one network, libraries' own aside")
    samples, metrics = bytes_of_pairs(d, noise, extra)
    typer.echo(f"             {samples / GIGA:.2f} GB of the machine for the samples")
    typer.echo(f"             about {metrics / GIGA:.1f} GB of the machine for the metrics")
    if extra < PAIRS_PER_DIMENSION * d:
        typer.echo(f"note         rho_affine needs --held-out {PAIRS_PER_DIMENSION * d}")


def bytes_of_pairs(d: int, noise: int, held_out: int) -> tuple[int, int]:
    """Return what samples of d numbers take of the machine's memory and, about, what their metrics take beside them."""
    from dmdpipe.copying.baselines import PAIRS_PER_DIMENSION

    fitted = 3 * held_out + 2 * d if held_out >= PAIRS_PER_DIMENSION * d else 0
    return BYTES * d * (4 * noise + 2 * held_out), DOUBLE * d * (2 * d + 4 * noise + held_out + fitted)


def memory_of_the_machine() -> int:
    """Return how many bytes of memory there are, others' included."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measure_pairs(files: tuple[Path, Path], z_file: Path | None, out: Path) -> None:
    from dmdpipe.copying.baselines import PAIRS_PER_DIMENSION
    from dmdpipe.copying.standalone import measure_pairs
    from dmdpipe.measuring.report import summary, write_report

    (teacher, sha_teacher), (student, sha_student) = map(_read_array, files)
    if teacher.shape != student.shape or teacher.ndim < 2 or len(teacher) < 2 or teacher.size == 0:
        raise UserError(
            f"--pairs: {files[0]} has shape {teacher.shape} and {files[1]} {student.shape}; both must be one [N, …]"
        )
    images = _are_images(teacher)
    t, s = (samples.reshape(len(samples), -1).astype(float) for samples in (teacher, student))
    for samples, file in zip((t, s), files, strict=True):
        _check_size(samples, "--pairs", file)
    if (t == t[0]).all():
        raise UserError(f"--pairs: {files[0]} holds one sample {len(t)} times; there is nothing to compare with")
    about: dict[str, Any] = {
        "title": _title(*files),
        "files": {str(files[0]): sha_teacher, str(files[1]): sha_student},
    }
    given: dict[str, Any] = {}
    notes = []
    if z_file:
        noise, about["files"][str(z_file)] = _read_array(z_file)
        if len(noise) != len(t) or noise.size != t.size:
            raise UserError(f"--z: {z_file} has shape {noise.shape}, but the samples have {teacher.shape}")
        noise = noise.reshape(t.shape).astype(float)
        _check_size(noise, "--z", z_file)
        given["z"] = noise
        half = len(t) // 2
        if half >= max(2, PAIRS_PER_DIMENSION * t.shape[1]):
            # The affine map must be judged on other pairs than those it is fitted to.
            given = {"z": noise[half:], "z_held_out": noise[:half], "teacher_held_out": t[:half]}
            t, s = t[half:], s[half:]
            notes.append(f"the first {half} pairs fit the affine map and are not measured")
    table = measure_pairs(t, s, **given)
    write_report(out, table, (t, s), about | {"notes": notes}, images=images)
    typer.echo(summary(table, len(t), t.shape[1], notes))
    typer.echo(f"\n{out}: metrics.csv, metrics.parquet, pairs.png")


def _measure_models(
    teacher_path: Path,
    student_path: Path,
    adapter: Path | None,
    sigma_max: float | None,
    held_out: int | None,
    options: dict[str, Any],
    out: Path,
) -> None:
    import torch

    from dmdpipe.copying.baselines import PAIRS_PER_DIMENSION
    from dmdpipe.copying.standalone import measure_pairs
    from dmdpipe.diffusion.determinism import exact_torch
    from dmdpipe.measuring.models import open_model
    from dmdpipe.measuring.report import summary, write_report
    from dmdpipe.measuring.sampling import common_range, sample_both

    exact_torch(torch.get_num_threads())
    device = checked_device(options["device"])
    teacher, student = (open_model(path, adapter) for path in (teacher_path, student_path))
    levels = common_range(teacher, student, sigma_max)
    n = options["noise"]
    extra = HELD_OUT * n if held_out is None else held_out
    if (needed := sum(bytes_of_pairs(teacher.dim, n, extra))) > (there := memory_of_the_machine()):
        raise UserError(
            f"--noise {n}, --held-out {extra}: samples and metrics take {needed / GIGA:,.0f} GB of memory, but this"
            f" machine has {there / GIGA:,.0f}; take fewer"
        )
    sampled = sample_both(
        teacher,
        student,
        levels,
        n=n,
        n_held_out=extra,
        steps=options["steps"],
        seed=options["seed"],
        batch=options["batch"],
        device=device,
        progress=lambda what: typer.echo(f"sampling {what}", err=True),
    )
    notes = []
    if teacher.teacher and student.teacher and teacher.teacher != student.teacher:
        notes.append(f"{student_path} was distilled from another teacher than {teacher_path}")
    if student.student is None:
        notes.append(f"the student was asked once, at σ = {levels.sigma_max:g}")
    if extra < PAIRS_PER_DIMENSION * teacher.dim:
        notes.append(f"--held-out {PAIRS_PER_DIMENSION * teacher.dim} adds the affine baseline")
    notes += [
        f"{name} has sha256 {sum_}; pin it in weights, in its adapter"
        for name, sum_ in (teacher.unpinned | student.unpinned).items()
    ]
    told = teacher.classes or student.classes
    if told:
        alone = "the teacher alone was" if teacher.classes else "the student alone was"
        notes.append(f"{'both were' if teacher.classes == student.classes else alone} asked for {told}")
    # Of one class alone, the metrics of classes are those of all.
    several = teacher.classes is not None and teacher.classes.label is None
    table = measure_pairs(
        sampled.teacher,
        sampled.student,
        z=sampled.z,
        doubled=sampled.doubled,
        z_held_out=sampled.z_held_out if extra else None,
        teacher_held_out=sampled.teacher_held_out if extra else None,
        classes=sampled.classes if several else None,
        classes_held_out=sampled.classes_held_out if several else None,
    )
    # Weights that were named in their folder have a name that says nothing.
    given = ((teacher, teacher_path), (student, student_path))
    named = [model.path if model.path == path.parent else path for model, path in given]
    about = {
        "title": _title(*named),
        "files": teacher.files | student.files,
        "options": options | {"held_out": extra},
        "noise_range": levels.model_dump(mode="json"),
        "notes": notes,
    }
    images = teacher.images or student.images
    drawn = [sampled.teacher, sampled.student]
    square = images is not None and images.channels in (1, 3) and images.height == images.width
    if images and square:
        drawn = [images.lying(torch.from_numpy(samples), channels_first=False).numpy() for samples in drawn]
    write_report(out, table, (drawn[0], drawn[1]), about, images=square, samples=sampled.arrays())
    typer.echo(summary(table, n, teacher.dim, notes))
    typer.echo(f"\n{out}: metrics.csv, metrics.parquet, pairs.png, samples.safetensors")


def checked_device(name: str) -> torch.device:
    """Return the device of a ``--device`` option.

    Raises:
        UserError: if it is unknown, or there is no GPU.
    """
    import torch

    if name not in ("cpu", "cuda"):
        raise UserError(f"--device: '{name}' is unknown; it must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda, but PyTorch finds no GPU here; leave it out")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def _title(teacher: Path, student: Path) -> str:
    """Return two lines that fit above the narrowest figure."""
    names = (path.resolve().name for path in (teacher, student))
    shown = (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names)
    return "T: {}\nS: {}".format(*shown)


def _read_array(path: Path) -> tuple[NDArray[Any], str]:
    """Return the array of a .npy or .npz file and the file's SHA-256."""
    import hashlib

    from dmdpipe.data.own_file import array_in, read_whole

    if path.suffix not in (".npy", ".npz"):
        raise UserError(f"{path}: must be a .npy or .npz file; save the samples with numpy.save")
    try:
        data = read_whole(path.resolve())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return array_in(data, path), hashlib.sha256(data).hexdigest()


def _check_size(samples: NDArray[Any], option: str, file: Path) -> None:
    if abs(samples).max() > LARGEST_NUMBER:
        raise UserError(f"{option}: {file} holds numbers beyond {LARGEST_NUMBER:g}; give the samples in smaller units")


def _are_images(samples: NDArray[Any]) -> bool:
    shape = samples.shape[1:]
    return len(shape) in (2, 3) and shape[0] == shape[1] and shape[2:] in ((), (3,))
