"""What a step will cost, before it runs: for ``studies plan`` and for the time left in the progress display."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dmdpipe.specs.data import dimension

if TYPE_CHECKING:
    from dmdpipe.artifacts.plan import PlannedStep

# Measured in one laptop run, two jobs side by side on the two virtual CPUs of an AMD EPYC machine, batch 256.
SECONDS_PER_UPDATE = 0.2e-3
SECONDS_PER_MULTIPLICATION = 1.2e-10
START_UP = {"data": 1.5, "noise": 0.5, "metrics": 1.0, "evidence": 0.5, "verdicts": 0.5, "figures": 6.5}
START_UP_WITH_TORCH = 0.5
UPDATES_PER_GENERATOR_STEP = 8
UPDATES_OF_A_DISCRIMINATOR = 27
SECONDS_PER_SNAPSHOT = 0.2
SECONDS_PER_FLOW_STEP = 0.06  # 1,000 particles and 1,000 tracers, with a kernel


def training_updates(step: PlannedStep) -> int:
    """Return how many updates of batch-times-network size a step makes: 0 for steps that train nothing.

    One forward and backward pass counts as one update; a DMD generator step with its five fake-score steps costs 24
    forward passes, hence eight. A discriminator's passes beside it make eleven, but not in C: they take as long as 27.
    """
    spec = step.spec
    if step.stage == "teacher":
        return 0 if spec.score.kind == "exact" else spec.score.steps
    if step.stage != "student":
        return 0
    start = spec.init.regression_steps if spec.init.kind == "kd-rotated" else 0
    per_step = UPDATES_PER_GENERATOR_STEP if spec.recipe.dm_weight and spec.recipe.fake == "learned" else 1
    if spec.recipe.adversarial_weight:
        per_step += UPDATES_OF_A_DISCRIMINATOR
    return start + per_step * spec.generator_steps


def estimated_seconds(step: PlannedStep) -> float:
    """Return about how long a step takes on one core, start-up included."""
    seconds = START_UP.get(step.stage, START_UP_WITH_TORCH)
    spec = step.spec
    if updates := training_updates(step):
        data, network, batch = (
            (spec.data, spec.score.network, spec.score.batch)
            if step.stage == "teacher"
            else (spec.teacher.data, spec.network, spec.batch)
        )
        multiplications = batch * weights(network, dimension(data))
        seconds += updates * (SECONDS_PER_UPDATE + SECONDS_PER_MULTIPLICATION * multiplications)
    if step.stage == "metrics":
        share = spec.pairs.teacher_samples.bank.n_paired / 1_000
        seconds += SECONDS_PER_SNAPSHOT * spec.pairs.student.snapshots * share**2
    if step.stage == "maps" and spec.fake == "kernel":
        moved = spec.particles + spec.pairs.teacher_samples.bank.n_paired
        seconds += SECONDS_PER_FLOW_STEP * spec.flow_steps * (moved / 2_000) * (spec.particles / 1_000)
    return seconds


def weights(network: Any, dim: int) -> int:
    """Return the number of weights of a network with d = ``dim``: multiplications per sample of a forward pass."""
    if network.kind == "linear":
        return dim * dim
    return network.width * (2 * dim + network.depth * network.width + network.embedding)


def seconds_by_rule(steps: Iterable[PlannedStep]) -> Mapping[str, float]:
    """Return the mean estimate per rule."""
    total: defaultdict[str, float] = defaultdict(float)
    count: Counter[str] = Counter()
    for step in steps:
        total[step.stage] += estimated_seconds(step)
        count[step.stage] += 1
    return {stage: total[stage] / count[stage] for stage in sorted(total)}
