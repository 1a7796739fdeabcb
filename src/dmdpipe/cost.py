"""What a step will cost, before it runs: for ``studies plan``, the time left, and what a cluster is asked for."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dmdpipe.artifacts.stages import find_stage
from dmdpipe.copying.inference_cost import multiplications, weights
from dmdpipe.data.layout import image_shape
from dmdpipe.specs.data import dimension
from dmdpipe.specs.student import REGRESSED

if TYPE_CHECKING:
    from dmdpipe.artifacts.plan import PlannedStep
    from dmdpipe.specs.diffusion import NoiseBankSpec
    from dmdpipe.specs.student import StudentSpec

# Measured in one laptop run, two jobs side by side on two virtual CPUs of an Intel Xeon, batch 256, and rounded up:
# its students take 0.7 of what follows from these.
SECONDS_PER_UPDATE = 0.07e-3
SECONDS_PER_MULTIPLICATION = 5e-11
# On an Intel Xeon (Sapphire Rapids), at d = 3072: noise and sums, in training and in sampling, for every coordinate.
SECONDS_PER_COORDINATE = 5e-9
SECONDS_PER_UPDATE_OF_A_LINEAR_STUDENT = 2e-3  # PyTorch's own, in double precision
START_UP = {"data": 1.0, "noise": 0.3, "metrics": 0.6, "evidence": 0.5, "verdicts": 6.0, "figures": 6.5}
START_UP_WITH_TORCH = 0.4
SHARE_OF_THE_STUDENT = 7 / 24  # of a DMD update; the rest is teacher and fake score, who may have another network
UPDATES_OF_A_DISCRIMINATOR = {"mlp": 13, "particles": 13, "unet": 11}
UPDATES_OF_A_BATCH_OF_SAMPLES = 3
SECONDS_PER_SNAPSHOT = 0.05  # of 1,000 pairs, and as much again for every
COORDINATES_OF_A_SNAPSHOT = 16
# An ensemble on an NVIDIA H200, as a graph (docs/benchmarks.md); a round takes at least as long as its kernels' starts.
START_UP_ON_A_GPU = 20.0
SECONDS_PER_ROUND_ON_A_GPU = 4e-3
SECONDS_PER_MULTIPLICATION_ON_A_GPU = 9e-12
_UPDATES_OF_A_STEP = 8
# Its memory there, by what 128 and 512 members of 64 units and 128 of 256 took: three networks, two optimisers and what
# is evaluated; and layers of a batch, of as many units or coordinates as there are more of.
COPIES_IN_AN_ENSEMBLE = 8
BATCHES_IN_AN_ENSEMBLE = 56
MEBIBYTES_OF_A_GRAPH = 330
MEBIBYTES_OF_A_SMALL_ENSEMBLE = 2_000
# A U-Net, in PyTorch: on a thread of an Intel Xeon (Sapphire Rapids) by benchmarks/unet.py. On a GPU none has been
# timed: an update is some thousand operations, as a small student's generator step is, and products go at half the rate
# that bare ones in full precision have on an H200 (docs/benchmarks.md).
SECONDS_PER_UPDATE_OF_A_UNET = {"cpu": 20e-3, "cuda": 28e-3}
SECONDS_PER_MULTIPLICATION_OF_A_UNET = {"cpu": 6e-11, "cuda": 3e-13}
PASSES_OF_AN_UPDATE = 3  # forward, and two backward
PASSES_OF_A_LAYER = 8  # over memory, of a residual block: what its convolutions, norms and sums leave for the gradient
ROWS_AT_ONCE = 1_024  # of noise that is sampled, without gradients: dmdpipe.diffusion.sampler.CHUNK
SECONDS_PER_FLOW_STEP = 0.06  # 1,000 particles and 1,000 tracers, with a kernel
# A step's libraries and, on a cluster, the two Snakemakes that start it there; steps of a laptop run peak at 390 MiB.
MEBIBYTES_OF_PROGRAMS = 1_500
MEBIBYTES_OF_CUDA = 3_000
BYTES_OF_A_NUMBER = 4
_COPIES = 8  # of what a step reads and makes: gradients, optimiser's moments, files being written


def training_updates(step: PlannedStep) -> int:
    """Return how many updates of batch-times-network size a step makes: 0 for steps that train nothing.

    One forward and backward pass counts as one update; a DMD generator step with its five fake-score steps costs 24
    forward passes, hence eight; with k of them 4k + 4 passes. A discriminator's passes beside it make eleven; an
    MLP's take as long as 13.
    """
    spec = step.spec
    if step.stage == "teacher":
        return 0 if spec.score.kind == "exact" else spec.score.steps
    if step.stage == "ensemble":
        return len(spec.members.seeds) * _student_updates(spec)
    return _student_updates(spec) if step.stage == "student" else 0


def _student_updates(spec: StudentSpec) -> int:
    learns_fake = spec.recipe.dm_weight and spec.recipe.fake == "learned"
    per_step = (4 * spec.recipe.generator_every + 4) // 3 if learns_fake else 1
    if spec.recipe.dm_weight and spec.recipe.fake == "samples":
        per_step += UPDATES_OF_A_BATCH_OF_SAMPLES * spec.recipe.fake_samples // spec.batch
    if spec.recipe.adversarial_weight:
        per_step += UPDATES_OF_A_DISCRIMINATOR[spec.network.kind]
    return _regression_steps(spec) + per_step * spec.generator_steps


def _regression_steps(spec: StudentSpec) -> int:
    return spec.init.regression_steps if spec.init.kind in REGRESSED else 0


def estimated_seconds(step: PlannedStep) -> float:
    """Return about how long a step takes on one core, start-up included."""
    seconds = START_UP.get(step.stage, START_UP_WITH_TORCH)
    spec = step.spec
    if step.stage == "ensemble" and spec.device == "cuda":
        rounds = spec.generator_steps * SECONDS_PER_ROUND_ON_A_GPU
        per_update = SECONDS_PER_MULTIPLICATION_ON_A_GPU / _UPDATES_OF_A_STEP
        return START_UP_ON_A_GPU + rounds + per_update * _multiplications(step, training_updates(step))
    if updates := training_updates(step):
        fixed, each = SECONDS_PER_UPDATE, SECONDS_PER_MULTIPLICATION
        owner, data = (spec.score, spec.data) if step.stage == "teacher" else (spec, spec.teacher.data)
        if _has_unet(spec):
            device = find_stage(step.stage).device(spec)
            fixed, each = SECONDS_PER_UPDATE_OF_A_UNET[device], SECONDS_PER_MULTIPLICATION_OF_A_UNET[device]
        elif owner.network.kind == "linear":
            fixed = SECONDS_PER_UPDATE_OF_A_LINEAR_STUDENT
        fixed += owner.batch * dimension(data) * SECONDS_PER_COORDINATE
        seconds += updates * fixed + each * _multiplications(step, updates)
    if step.stage in ("teacher_samples", "pairs"):
        seconds += _seconds_of_sampling(step)
    if step.stage == "metrics":
        bank = spec.pairs.teacher_samples.bank
        each = SECONDS_PER_SNAPSHOT * (1 + bank.dim / COORDINATES_OF_A_SNAPSHOT)
        seconds += each * spec.pairs.student.snapshots * (bank.n_paired / 1_000) ** 2
    if step.stage == "maps" and spec.fake == "kernel":
        moved = spec.particles + spec.pairs.teacher_samples.bank.n_paired
        seconds += SECONDS_PER_FLOW_STEP * spec.flow_steps * (moved / 2_000) * (spec.particles / 1_000)
    return seconds


def _has_unet(spec: Any) -> bool:
    """Whether a network of a training or sampling is a U-Net: beside one, an MLP counts for nothing."""
    networks = [getattr(owner, "network", None) for owner in (spec, getattr(spec, "teacher", spec).score)]
    return any(network is not None and network.kind == "unet" for network in networks)


def _seconds_of_sampling(step: PlannedStep) -> float:
    """Return the time of a network's answers to the noise bank."""
    samples = step.spec if step.stage == "teacher_samples" else step.spec.teacher_samples
    bank = samples.bank
    if step.stage == "teacher_samples":
        network = getattr(samples.teacher.score, "network", None)
        # The paired noises thrice: as they are, turned, and with twice as many steps, which count double.
        answers = 2 * samples.sampler.steps * (bank.n_paired * (4 + bank.n_reference_sets) + bank.n_held_out)
    else:
        network = step.spec.student.network
        answers = bank.n_paired * step.spec.student.snapshots * step.spec.student.sampling_steps
    each = SECONDS_PER_MULTIPLICATION
    if network is not None and network.kind == "unet":
        each = SECONDS_PER_MULTIPLICATION_OF_A_UNET[samples.sampler.device]
    of_network = 0 if network is None else multiplications(network, bank.dim) * each / PASSES_OF_AN_UPDATE
    return float(answers * (of_network + bank.dim * SECONDS_PER_COORDINATE))


def _multiplications(step: PlannedStep, updates: int) -> float:
    spec = step.spec
    if step.stage == "teacher":
        return float(updates * spec.score.batch * multiplications(spec.score.network, dimension(spec.data)))
    dim = dimension(spec.teacher.data)
    own = multiplications(spec.network, dim)
    start, mean = _regression_steps(spec), float(own)
    if spec.teacher.score.kind == "trained":
        share = SHARE_OF_THE_STUDENT if spec.recipe.dm_weight else 1
        # Each of the five batches goes through (steps − 1)/2 earlier steps in the mean, of these 24 passes.
        simulated = 5 * (spec.sampling_steps - 1) / 2 / 24
        mean = (share + simulated) * own + (1 - share) * multiplications(spec.teacher.score.network, dim)
    return float(spec.batch * (start * own + (updates - start) * mean))


def estimated_mebibytes(step: PlannedStep) -> int:
    """Return about how much of a machine's own memory a step takes at most, libraries included."""
    spec = step.spec
    held = working = 0
    if step.stage == "data":
        held = spec.n_train * dimension(spec)
    elif step.stage == "teacher":
        held = spec.data.n_train * dimension(spec.data)
        working = _working_memory(spec.score, dimension(spec.data), getattr(spec.score, "batch", 0))
    elif step.stage in ("student", "ensemble", "member"):
        members = len(spec.members.seeds) if step.stage == "ensemble" else 1
        dim = dimension(spec.teacher.data)
        is_network = spec.network.kind != "particles"
        held = members * spec.snapshots * (weights(spec.network, dim) if is_network else spec.network.count * dim)
        working = _working_memory(spec, dim, spec.batch)
    elif step.stage == "noise":
        held = _numbers_of_a_bank(spec)
    elif step.stage == "teacher_samples":
        held = _numbers_of_a_bank(spec.bank)
        working = _working_memory(spec.teacher.score, spec.bank.dim, ROWS_AT_ONCE // PASSES_OF_A_LAYER)
    elif step.stage in ("pairs", "metrics", "maps"):
        pairs = spec if step.stage == "pairs" else spec.pairs
        bank = pairs.teacher_samples.bank
        held = _numbers_of_a_bank(bank) + pairs.student.snapshots * bank.n_paired * bank.dim
        if step.stage == "pairs":
            working = _working_memory(pairs.student, bank.dim, ROWS_AT_ONCE // PASSES_OF_A_LAYER)
    if runs_on_gpu(step):
        return MEBIBYTES_OF_PROGRAMS + MEBIBYTES_OF_CUDA + BYTES_OF_A_NUMBER * _COPIES * held // 2**20
    return MEBIBYTES_OF_PROGRAMS + BYTES_OF_A_NUMBER * (_COPIES * held + working) // 2**20


def _working_memory(owner: Any, dim: int, batch: int) -> int:
    """Return how many numbers an update of a spec's U-Net keeps for its gradient; those of an MLP are few."""
    network = getattr(owner, "network", None)
    if network is None or network.kind != "unet":
        return 0
    side, _ = image_shape(dim)
    values = sum(
        network.channels * factor * math.ceil(side / 2**level) ** 2 for level, factor in enumerate(network.multipliers)
    )
    return batch * PASSES_OF_A_LAYER * (2 * network.blocks + 1) * values


def _numbers_of_a_bank(bank: NoiseBankSpec) -> int:
    return bank.dim * (bank.n_paired * (1 + bank.n_reference_sets) + bank.n_held_out)


def runs_on_gpu(step: PlannedStep) -> bool:
    """Whether a step's spec says that it trains or samples on a GPU."""
    return find_stage(step.stage).device(step.spec) == "cuda"


def takes_much_of_a_gpu(step: PlannedStep) -> bool:
    """Whether a step computes with a U-Net on a GPU, or trains an ensemble there that takes gigabytes of it."""
    spec = step.spec.student if step.stage == "pairs" else step.spec
    large = step.stage == "ensemble" and mebibytes_on_a_gpu(spec) > MEBIBYTES_OF_A_SMALL_ENSEMBLE
    return runs_on_gpu(step) and (large or _has_unet(spec))


def mebibytes_on_a_gpu(ensemble: StudentSpec) -> int:
    """Return about how much of a GPU's memory an ensemble takes, by the spec of one of its members."""
    dim = dimension(ensemble.teacher.data)
    network: Any = ensemble.network
    of_weights = (COPIES_IN_AN_ENSEMBLE + ensemble.snapshots) * weights(network, dim)
    of_batches = ensemble.batch * BATCHES_IN_AN_ENSEMBLE * max(network.width, dim)
    assert ensemble.members
    numbers = len(ensemble.members.seeds) * (of_weights + of_batches)
    return MEBIBYTES_OF_A_GRAPH + BYTES_OF_A_NUMBER * numbers // 2**20


def minutes_to_ask_for(step: PlannedStep, attempt: int) -> int:
    """Return a time limit: four times the estimate and ten minutes, as often as the step has been tried.

    A node can be slower than the machine of the estimate, and a training that is cut off resumes from its checkpoint.
    """
    return attempt * (10 + math.ceil(4 * estimated_seconds(step) / 60))


def megabytes_to_ask_for(step: PlannedStep, attempt: int) -> int:
    """Return a limit of memory: the estimate, doubled with every attempt."""
    return 2 ** (attempt - 1) * estimated_mebibytes(step)


def seconds_by_rule(steps: Iterable[PlannedStep]) -> Mapping[str, float]:
    """Return the mean estimate per rule."""
    total: defaultdict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    for step in steps:
        total[step.stage] += estimated_seconds(step)
        count[step.stage] += 1
    return {stage: total[stage] / count[stage] for stage in sorted(total)}
