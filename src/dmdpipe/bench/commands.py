"""``dmdpipe bench``: what training, sampling and metrics cost here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dmdpipe.tables import Format, render

MOST = 10**6  # of anything that is counted
LONGEST = 86_400  # seconds of a turn

bench_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Measure what this machine makes of the code, as ratios within one run.

    \b
    dmdpipe bench training                            the share of a core's matrix-product rate that training reaches
    dmdpipe bench sampling                            sampling over the forward passes that it needs
    dmdpipe bench gate                                how long students of finished results took to the gate
    dmdpipe bench gpu                                 whether a GPU's students are right, and how many a second
    dmdpipe bench growth                              cost against dimension, width, batch, members, pairs, steps
    """,
)

Widths = Annotated[list[int] | None, typer.Option("--width", min=1, max=MOST, help="of the network; 64, 128 and 256")]
Dim = Annotated[int, typer.Option("--dim", min=1, max=MOST, help="number of coordinates d")]
Batch = Annotated[int, typer.Option("--batch", min=1, max=MOST, help="samples a step")]
Turns = Annotated[int, typer.Option("--turns", min=1, max=MOST, help="how often each is timed")]
Form = Annotated[Format, typer.Option("--format", help="table, json or csv")]


@bench_app.command("training")
def training(
    widths: Widths = None,
    dim: Dim = 64,
    batch: Batch = 256,
    turns: Turns = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=LONGEST, help="about how long one turn trains")
    ] = 8.0,
    form: Form = Format.table,
) -> None:
    """Train on one thread, everything included, and time the bare matrix products of that training beside it.

    Both are timed in turns. Columns: milliseconds of a generator step's matrix products, with its fake-score steps',
    and of its training; the rate of the products in 10⁹ operations a second; milliseconds of 24 forward passes at that
    rate (what such a step needs if a backward pass counts as two); the share (products/training, the median of the
    turns), its smallest and largest turn, and share_of_passes (24 passes/training). The faster a CPU makes products,
    the smaller their share: the last example measures an AVX-512 machine as if it had AVX2 alone, products too.

    \b
    dmdpipe bench training
    dmdpipe bench training --width 64 --dim 16 --seconds 5
    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 dmdpipe bench training
    """
    import pandas as pd

    from dmdpipe.bench.training import measure

    rows = [measure(width, dim, batch, turns, seconds) for width in widths or (64, 128, 256)]
    table = pd.DataFrame([{key: value for key, value in asdict(row).items() if key != "shares"} for row in rows])
    shares = pd.DataFrame([row.shares for row in rows])
    table = table.assign(share=shares.median(axis=1), smallest=shares.min(axis=1), largest=shares.max(axis=1))
    table["share_of_passes"] = table["share"] * table["passes"] / table["products"]
    units = {name: f"{name}_ms" for name in ("products", "training", "passes")}
    typer.echo(render(table.rename(columns=units), form))


@bench_app.command("sampling")
def sampling(
    widths: Widths = None,
    dim: Dim = 64,
    samples: Annotated[int, typer.Option("--samples", min=1, max=MOST, help="number of noises N")] = 4_096,
    steps: Annotated[int, typer.Option("--steps", min=1, max=MOST, help="intervals of the sampler")] = 32,
    turns: Turns = 5,
    form: Form = Format.table,
) -> None:
    """Map noise to samples by Heun's method on one thread, and time the denoiser's calls in it beside it.

    All are timed in turns. Columns: milliseconds of the denoiser's 2·steps − 1 calls alone, of the bare network's in
    them (no preconditioning), of the whole map, the ratio (map/denoiser's calls, the median of the turns), and the
    smallest and largest ratio of a turn.

    \b
    dmdpipe bench sampling
    dmdpipe bench sampling --width 64 --dim 2 --samples 1000
    """
    import pandas as pd

    from dmdpipe.bench.sampling import measure

    rows = [measure(width, dim, samples, steps, turns) for width in widths or (64, 128, 256)]
    table = pd.DataFrame([{key: value for key, value in asdict(row).items() if key != "ratios"} for row in rows])
    ratios = pd.DataFrame([row.ratios for row in rows])
    table = table.assign(ratio=ratios.median(axis=1), smallest=ratios.min(axis=1), largest=ratios.max(axis=1))
    milliseconds = {name: f"{name}_ms" for name in ("forward", "network", "sampling")}
    typer.echo(render(table.rename(columns=milliseconds), form))


@bench_app.command("gate")
def gate(
    results: Annotated[Path, typer.Argument(help="a folder of results")] = Path("results"),
    form: Form = Format.table,
) -> None:
    """Read off finished results how long students train until their distribution is within the gate.

    One row for each kind of student: how many there are and how many reached the gate, the median generator steps and
    seconds until the first snapshot within it, and the median seconds of a whole training. Snapshots are log-spaced:
    the gate was reached at some time since the snapshot before. Seconds are those of the machine that trained, other
    steps beside it.

    \b
    dmdpipe bench gate
    dmdpipe bench gate results --format csv
    """
    from dmdpipe.bench.gate import time_to_the_gate

    typer.echo(render(time_to_the_gate(results), form))


@bench_app.command("gpu")
def gpu(
    members: Annotated[
        list[int] | None, typer.Option("--members", min=2, max=MOST, help="at once; 128 and 512")
    ] = None,
    precisions: Annotated[list[str] | None, typer.Option("--precision", help="full, tf32, bf16; on a GPU all")] = None,
    device: Annotated[str, typer.Option("--device", help="cuda, or cpu to see what it prints")] = "cuda",
    width: Annotated[int, typer.Option("--width", min=1, max=MOST, help="of the network")] = 64,
    dim: Dim = 64,
    batch: Batch = 256,
    steps: Annotated[int, typer.Option("--steps", min=2, max=MOST, help="generator steps that are timed")] = 100,
    turns: Turns = 3,
    form: Form = Format.table,
) -> None:
    """Check students that a GPU trained, then time them: one by one, and many at once as a CUDA graph.

    The checks come first, a line each on standard error; if one fails, nothing is timed. Columns: milliseconds of a
    generator step with its fake-score steps, of all students; students a second, of 2,000 such steps each, and how many
    times those of the loop, which trains one; the share of the rate of bare products, batched in the hidden layers'
    shape, and of one large product; milliseconds of drawing the noise alone; peak memory.

    \b
    dmdpipe bench gpu
    dmdpipe bench gpu --width 256 --members 32 --precision bf16
    dmdpipe bench gpu --device cpu --members 2 --width 16 --steps 10
    """
    import pandas as pd

    from dmdpipe.bench.gpu import checks, measure, trained_on
    from dmdpipe.bench.training import student_spec
    from dmdpipe.errors import UserError

    spec = student_spec(width, dim, batch, steps)
    wanted = precisions or (["full", "tf32", "bf16"] if device == "cuda" else ["full"])
    specs = [trained_on(spec, device=device, precision=precision) for precision in wanted]
    failed = []
    for check in checks(device):
        typer.echo(f"{'ok    ' if check.passed else 'FAILED'} {check.name} ({check.off:.1e} of the way)", err=True)
        failed += [] if check.passed else [check.name]
    if failed:
        raise UserError(f"bench gpu: does not hold on this device: {'; '.join(failed)}; wrong students are not timed")
    rows = [asdict(row) for one in specs for row in measure(one, members or (128, 512), turns)]
    typer.echo(render(pd.DataFrame(rows), form))


@bench_app.command("growth")
def growth(
    turns: Annotated[
        int, typer.Option("--turns", min=1, max=MOST, help="how often each is timed; the shortest counts")
    ] = 3,
    values: Annotated[
        int | None, typer.Option("--values", min=2, max=MOST, help="how many values of each, from below")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="a folder for growth.png, .pdf and .csv")] = None,
    form: Form = Format.table,
) -> None:
    """Time training, sampling and metrics while one thing grows: dimension, width, batch, members, pairs, steps.

    On one thread, about three minutes. Columns: the ends of each axis and the seconds there, the measured exponent
    (the slope of log seconds against log value over the last three values), that of the algorithm, and whether the
    measured one is at most 0.2 above it.

    \b
    dmdpipe bench growth --values 2 --turns 1
    dmdpipe bench growth --output figures
    """
    from dmdpipe.bench.growth import draw, measure, summary

    table = measure(turns=turns, values=values)
    if output:
        from dmdpipe.figures.style import save_figure

        save_figure(draw(table), output, "growth", table)
    typer.echo(render(summary(table), form))
