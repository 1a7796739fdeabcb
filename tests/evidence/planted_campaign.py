"""Simulate whole studies whose truth is planted, and count how often intervals and verdicts miss it.

    ./run exec python tests/evidence/planted_campaign.py --studies 2000
    ./run exec python tests/evidence/planted_campaign.py --studies 300 --whole

In each simulated study every criterion of config/claims.yaml lies exactly at its threshold; so do, in a second round,
those of planted_claims.yaml beside this file: known mode agreement and memorization, an independent student, and one
with the same weak correlation at every dimension. Every seed is a planted
student (``planted_pairs``) with a truth of its own, drawn around the point's. Its samples are measured by
``dmdpipe.copying.measure``, its metrics go into the studies' tables, and these are read and judged as after a real
run, with the seeds that the laptop scale declares. What is not as in a real run: N pairs are few (``--pairs``).

With ``--whole``, every study measures students of its own, on a noise bank that all of its seeds share, as in a real
run; a study takes a second or two. Without, ``--students`` students are measured at every point, once, each on a bank
of its own, and a study draws its seeds from them. Then the truth is the mean over these students, known to the last
digit, and how far that lies from what was planted is told beside.

What is counted:

- bias: how far the mean of a criterion's statistic lies from what was planted;
- coverage: how often the 95 % interval of a criterion's statistic holds the planted truth, by kind of statistic;
- wrong verdicts: support where the claim is false by nothing, and refutation where it is true by nothing, for each
  claim and over all of them; and support where one criterion is at its threshold and all others hold for certain, the
  hardest null of a conjunction. A truth beyond a threshold is the same as a threshold that lies nearer, so the same
  studies serve for all of these;
- power: how often a criterion holds if the truth lies as far beyond its threshold as its seeds should be able to tell
  with probability 0.8 (``dmdpipe.evidence.power``).

Ends with 1 if any of these is worse than it says, by more than the simulation's own error and the allowance that
docs/studies.md names.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from planted_outcomes import Place, declared_claims, declared_points, planted_claims, values_for, weights
from planted_pairs import Bank, measured, noise_bank
from scipy.stats import beta

from dmdpipe.evidence.intervals import sum_interval
from dmdpipe.evidence.power import PROBABILITY, detectable_difference
from dmdpipe.evidence.readings import Reading, read_criterion
from dmdpipe.evidence.results import per_seed_rows
from dmdpipe.evidence.verdicts import FAMILYWISE_ERROR, judge_claim, judge_criterion
from dmdpipe.specs.claims import Claim, Claims, Criterion

PLANTED_IN_SAMPLES = {
    "rho": (0.15, 1.0),
    "rho_rotated": (0.15, 1.0),
    "rho_affine": (0.02, 0.6),
    "rho_floor": (0.01, 0.1),
    "mode_agreement": (-0.9, 0.9),
    "memorized": (0.02, 0.55),
    "memorized_held_out": (0.01, 0.3),
    "cosine": (-1e-6, 1e-6),  # of an independent student: planted with its ρ
}
NEAR = {"rho_floor": 0.01, "mode_agreement": 0.3, "memorized": 0.3, "memorized_held_out": 0.02, "cosine": 0.0}
SPREAD = 0.12  # standard deviation over seeds of a planted ρ, κ, or of what is told; of other metrics a fifth
COVERAGE_ALLOWANCE = 0.01
STUDENTS_AT_ONCE = 20
SURELY = 10.0
BIAS_ALLOWANCE = 0.02  # of a finite N and a finite fit
ERROR_ALLOWANCE = 1.6  # times its level: Welch's approximation at its worst from 5 seeds up

Key = tuple[str, str]  # claim, criterion
say_now = partial(print, flush=True)
Readings = dict[Key, Reading]


@dataclass(frozen=True)
class Plan:
    """What is planted: the claims, the points of their studies, and the true metrics at their thresholds."""

    claims: Claims
    points: Mapping[str, Mapping[str, Mapping]]
    truth: Mapping[Place, float]
    left_out: Mapping[str, str]
    pairs: int

    @property
    def planted(self) -> list[Claim]:
        """The claims all of whose criteria lie at their thresholds."""
        return [claim for claim in self.claims.tested if claim.id not in self.left_out]


def make_plan(claims: Claims, pairs: int) -> Plan:
    """Return metric values at which as many criteria as possible lie at their thresholds at once."""
    points = declared_points(claims)
    listed = [(claim.id, one) for claim in claims.tested for one in claim.criteria]
    places, matrix = weights([one for _, one in listed], points)
    near = [NEAR.get(metric, 0.5) for _, _, metric in places]
    bounds = [PLANTED_IN_SAMPLES.get(metric, (-10.0, 10.0)) for _, _, metric in places]
    rows: list[int] = []
    values = np.array(near)
    left_out: dict[str, str] = {}
    for row, (claim, one) in enumerate(listed):
        targets = [listed[i][1].threshold for i in [*rows, row]]
        found = None if not matrix[row].any() else values_for(matrix[[*rows, row]], targets, near, bounds)
        if found is None:
            left_out[claim] = f"'{one.name}' cannot lie at its threshold together with the criteria before it"
        else:
            rows, values = [*rows, row], found
    truth = dict(zip(places, values.tolist(), strict=True))
    return Plan(claims, points, truth, left_out, pairs)


def read_study(plan: Plan, seed: int) -> Readings:
    """Simulate all studies once, from samples to readings."""
    return read_tables(plan, simulated_tables(plan, seed))


def read_tables(plan: Plan, tables: pd.DataFrame) -> Readings:
    """Return the reading of every criterion from the studies' results tables."""
    return {(claim.id, one.name): read_criterion(one, tables) for claim in plan.claims.tested for one in claim.criteria}


def simulated_tables(plan: Plan, seed: int, students: int | None = None) -> pd.DataFrame:
    """Return the rows of all studies' results tables, simulated once.

    With ``students``, so many at every point instead of the declared number of seeds, each on a noise bank of its own.
    """
    rng = np.random.default_rng(seed)
    banks: dict[int, Bank] = {}
    tables = []
    for study, points in plan.points.items():
        cells = []
        for name, labels in points.items():
            truth = {metric: value for (s, point, metric), value in plan.truth.items() if (s, point) == (study, name)}
            if not truth:
                continue
            d = labels["d"]
            for member in range(students or labels["seeds"]):
                if students or d not in banks:
                    banks[d] = noise_bank(rng, d, plan.pairs * max(1, 4 // d))
                own = {metric: around(rng, metric, value) for metric, value in truth.items()}
                student = {metric: own[metric] for metric in PLANTED_IN_SAMPLES if metric in own}
                if "rho" not in student and "rho_rotated" in student:
                    student["rho"] = 0.8
                rows = measured(banks[d], rng, student, seed=member)
                told = {metric: own[metric] for metric in own if metric not in PLANTED_IN_SAMPLES}
                kept = rows["metric"].isin({*truth, "gate_ratio", "converged"} - told.keys())
                also = pd.DataFrame({"generator_step": 100, "metric": list(told), "value": list(told.values())})
                rows = pd.concat([rows[kept], also], ignore_index=True) if told else rows[kept]
                cells.append(({**labels, "seed": member}, rows))
        tables.append(per_seed_rows(study, "test", cells))
    return pd.concat(tables, ignore_index=True)


def around(rng: np.random.Generator, metric: str, centre: float) -> float:
    """Draw one seed's true metric around the point's."""
    if metric not in PLANTED_IN_SAMPLES:
        return centre + SPREAD * rng.standard_normal()
    if metric == "cosine":
        return centre
    if metric in ("rho", "rho_rotated"):
        # None at 1: every seed of an independent student is as independent.
        spread = max(0.0, min(SPREAD, centre / 4, 1 - centre))
    elif metric == "mode_agreement":
        spread = SPREAD
    else:
        spread = centre / 5
    return centre + spread * np.clip(rng.standard_normal(), -3.5, 3.5)


def drawn_studies(
    plan: Plan, pool: Readings, studies: int, rng: np.random.Generator, seeds: int | None = None
) -> list[Readings]:
    """Return studies whose seeds are drawn from the measured students: the declared numbers of them, or ``seeds``."""
    numbers = {
        (claim.id, one.name): [seeds or n for n in declared_seeds(plan, one, pool[claim.id, one.name])]
        for claim in plan.planted
        for one in claim.criteria
    }
    most = max(max(each) for each in numbers.values())
    found = []
    for _ in range(studies):
        # Criteria of one claim or of several that read the same students read the same seeds of them.
        places = {one.study: rng.random((most, most)) for claim in plan.planted for one in claim.criteria}
        study = {}
        for claim in plan.planted:
            for one in claim.criteria:
                key = (claim.id, one.name)
                groups = tuple(
                    group[(places[one.study][g, :n] * group.size).astype(int)]
                    for g, (group, n) in enumerate(zip(pool[key].groups, numbers[key], strict=True))
                )
                study[key] = Reading(groups, seeds_run=tuple(numbers[key]))
        found.append(study)
    return found


def declared_seeds(plan: Plan, criterion: Criterion, reading: Reading) -> list[int]:
    """Return how many seeds a criterion has at each of its dimensions, in rising order."""
    points = [plan.points[s][point] for s, point in {(s, p) for s, p, _ in plan.truth} if s == criterion.study]
    wanted = criterion.select.model_dump(exclude_defaults=True)
    other = criterion.statistic.difference and criterion.statistic.difference.minus
    at = {
        labels["d"]: labels["seeds"]
        for selection in (wanted, wanted | (other.model_dump(exclude_defaults=True) if other else {}))
        for labels in points
        if all(labels[column] in kept for column, kept in selection.items())
    }
    assert len(at) == len(reading.groups)
    return [at[d] for d in sorted(at)]


# What came out


@dataclass
class Tally:
    """Counts of what happened in simulated studies."""

    studies: int = 0
    covered: dict[str, Counter] = field(default_factory=dict)
    verdicts: dict[str, Counter] = field(default_factory=dict)
    hardest: dict[Key, Counter] = field(default_factory=dict)
    held: dict[Key, Counter] = field(default_factory=dict)
    family: Counter = field(default_factory=Counter)
    runs: Counter = field(default_factory=Counter)


def tally(
    plan: Plan,
    readings: Sequence[Readings],
    truths: Mapping[Key, float] | None = None,
    what: Collection[str] = ("coverage", "verdicts", "hardest", "power"),
) -> Tally:
    """Judge every simulated study and count ``what`` is asked for.

    The truth is each criterion's threshold unless told otherwise.
    """
    counts = Tally(studies=len(readings))
    alpha = FAMILYWISE_ERROR / len(plan.claims.tested)
    for claim in plan.planted:
        truth = {one.name: one.threshold if truths is None else truths[claim.id, one.name] for one in claim.criteria}
        if "coverage" in what:
            coverage(claim, truth, readings, counts)
        if "power" in what:
            power_of(claim, truth, readings, alpha, counts)
        if "hardest" in what:
            conjunction(claim, truth, readings, alpha, counts)
    for study in readings if "verdicts" in what else ():
        seen = {verdict_at(claim, study, truths, alpha, counts) for claim in plan.planted}
        counts.family.update(seen - {"inconclusive"})
    return counts


def coverage(claim: Claim, truth: Mapping[str, float], readings: Sequence[Readings], counts: Tally) -> None:
    """Count by kind of statistic how often the 95 % interval holds the truth, and the runs over the gate."""
    for one in claim.criteria:
        for study in readings:
            reading = study[claim.id, one.name]
            interval = sum_interval(reading.groups, 0.95)
            if np.isfinite(interval.low):
                kind = f"{kind_of(one, reading)} ({' and '.join(map(str, reading.seeds_run))} seeds)"
                covers = interval.low <= truth[one.name] <= interval.high
                counts.covered.setdefault(kind, Counter())[covers] += 1
            counts.runs["runs"] += reading.runs
            counts.runs["dropped"] += len(reading.dropped)


def verdict_at(claim: Claim, study: Readings, truths: Mapping[Key, float] | None, alpha: float, counts: Tally) -> str:
    """Return the verdict on a claim whose criteria all lie at their thresholds, and count it."""
    if truths is not None:
        claim = claim.model_copy(
            update={"criteria": tuple(moved(one, truths[claim.id, one.name]) for one in claim.criteria)}
        )
    verdict = judge_claim(claim, [study[claim.id, one.name] for one in claim.criteria], alpha).verdict
    counts.verdicts.setdefault(claim.id, Counter())[verdict] += 1
    return verdict


def power_of(
    claim: Claim, truth: Mapping[str, float], readings: Sequence[Readings], alpha: float, counts: Tally
) -> None:
    """Count how often a criterion holds whose truth lies a difference beyond the threshold that it should tell."""
    for one in claim.criteria:
        key = (claim.id, one.name)
        told = difference_to_tell([study[key] for study in readings], alpha)
        easier = moved(one, truth[one.name] - told * side(one))
        counts.held[key] = Counter(judge_criterion(claim, easier, study[key], alpha).outcome for study in readings)


def conjunction(
    claim: Claim, truth: Mapping[str, float], readings: Sequence[Readings], alpha: float, counts: Tally
) -> None:
    """Count support where one criterion is at its threshold and all others hold for certain."""
    for one in claim.criteria if len(claim.criteria) > 1 else ():
        criteria = tuple(
            moved(other, truth[other.name] - (0 if other is one else SURELY) * side(other)) for other in claim.criteria
        )
        hardest = claim.model_copy(update={"criteria": criteria})
        counted = counts.hardest.setdefault((claim.id, one.name), Counter())
        for study in readings:
            mine = [study[claim.id, other.name] for other in claim.criteria]
            counted[judge_claim(hardest, mine, alpha).verdict] += 1


def side(criterion: Criterion) -> int:
    return 1 if criterion.predicts == "above" else -1


def moved(criterion: Criterion, threshold: float) -> Criterion:
    """Return the criterion with another threshold."""
    return criterion.model_copy(update={"threshold": threshold})


def kind_of(criterion: Criterion, reading: Reading) -> str:
    statistic = criterion.statistic
    if statistic.value:
        kind = "value"
    elif statistic.slope:
        kind = "slope"
    elif statistic.difference and statistic.difference.minus_metric:
        kind = "difference of two metrics"
    else:
        kind = "difference of two points"
    return kind if len(reading.groups) == 1 else f"{kind}, Welch over {len(reading.groups)} dimensions"


def difference_to_tell(readings: Sequence[Reading], alpha: float) -> float:
    """Return the difference that all seeds together should find to hold with probability 0.8, σ being known."""
    whole = [one for one in readings if one.n_seeds == one.seeds_run]
    spreads = np.sqrt(np.mean([[group.var(ddof=1) for group in one.groups] for one in whole], axis=0))
    return detectable_difference(whole[0].n_seeds, spreads, alpha)


# The report


def limits(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper–Pearson interval of a rate."""
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, count, total - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def report(plan: Plan, counts: Tally, say: Callable[[str], None] = say_now) -> list[str]:
    """Print all rates with their 95 % intervals; return those that are worse than they may be."""
    problems = []
    alpha = FAMILYWISE_ERROR / len(plan.claims.tested)

    def rate(what: str, count: int, total: int, least: float = 0.0, most: float = 1.0) -> None:
        low, high = limits(count, total)
        say(f"  {what:72} {count / total:7.4f} [{low:.4f}, {high:.4f}]")
        surely_low, surely_high = limits(count, total, 0.998)
        if surely_high < least or surely_low > most:
            problems.append(f"{what}: {count / total:.4f}, and not {least:.4g} to {most:.4g}")

    if counts.covered:
        say("coverage of the 95 % intervals")
    for kind, covered in sorted(counts.covered.items()):
        rate(kind, covered[True], covered.total(), least=0.95 - COVERAGE_ALLOWANCE)
    if counts.verdicts:
        say(f"wrong verdicts at the threshold, each claim at most {alpha:.4f}")
    for claim, verdicts in counts.verdicts.items():
        for wrong in ("supported", "refuted"):
            rate(f"{claim} {wrong}", verdicts[wrong], counts.studies, most=ERROR_ALLOWANCE * alpha)
    if counts.hardest:
        say(f"support with one criterion at its threshold, all others sure, at most {alpha:.4f}")
    for (claim, criterion), verdicts in counts.hardest.items():
        rate(f"{claim}, {criterion}", verdicts["supported"], counts.studies, most=ERROR_ALLOWANCE * alpha)
    if counts.verdicts:
        say(f"any wrong verdict over all {len(counts.verdicts)} claims, at most {FAMILYWISE_ERROR}")
    for wrong in ("supported", "refuted") if counts.verdicts else ():
        rate(f"any {wrong}", counts.family[wrong], counts.studies, most=FAMILYWISE_ERROR)
    if counts.held:
        say(f"power where {PROBABILITY:g} is said, less what the gate takes")
    for (claim, criterion), outcomes in counts.held.items():
        rate(f"{claim}, {criterion}", outcomes["holds"], counts.studies, least=PROBABILITY - 0.15)
    if counts.runs["runs"]:
        say(f"runs over the gate though converged: {counts.runs['dropped']} of {counts.runs['runs']}")
    return problems


def biases(plan: Plan, readings: Sequence[Readings], say: Callable[[str], None] = say_now) -> list[str]:
    """Print how far the mean of every statistic lies from what was planted; return those that lie too far."""
    problems = []
    say("mean of the statistic less what was planted, and its standard error")
    for claim in plan.planted:
        for one in claim.criteria:
            sums = [sum_interval(study[claim.id, one.name].groups, 0.95) for study in readings]
            gaps = np.array([interval.mean for interval in sums]) - one.threshold
            error = np.nanstd(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.ptp(sums[0][1:]) / 4
            bias = np.nanmean(gaps)
            say(f"  {f'{claim.id}, {one.name}':72} {bias:7.4f} ± {error:.4f}")
            if abs(bias) > BIAS_ALLOWANCE + 3 * error:
                problems.append(f"{claim.id}, {one.name}: read {bias:.4f} off what was planted")
    return problems


def check_plan(plan: Plan, say: Callable[[str], None] = say_now) -> None:
    """Say what is planted where."""
    for (study, point, metric), value in sorted(plan.truth.items()):
        how = "samples" if metric in PLANTED_IN_SAMPLES else "the table"
        say(f"  {study}, {point}: {metric} = {value:.4g}, planted in {how}")
    for claim, why in plan.left_out.items():
        say(f"  {claim} is left out: {why}")


def simulate(plan: Plan, options: argparse.Namespace) -> tuple[list[Readings], dict[Key, float] | None, list[str]]:
    """Return every study's readings, the truths where they are not the thresholds, and which biases are wrong."""
    streams = np.random.SeedSequence(options.seed).generate_state(options.studies, dtype=np.uint64).tolist()
    with ProcessPoolExecutor(options.processes) as pool:
        if options.whole:
            readings = list(pool.map(partial(read_study, plan), streams, chunksize=5))
            return readings, None, biases(plan, readings)
        parts = -(-options.students // STUDENTS_AT_ONCE)
        made = list(pool.map(partial(simulated_tables, plan, students=STUDENTS_AT_ONCE), streams[:parts]))
    tables = [part.assign(seed=part["seed"] + i * STUDENTS_AT_ONCE) for i, part in enumerate(made)]
    measured_once = read_tables(plan, pd.concat(tables, ignore_index=True))
    truths = {key: sum(float(group.mean()) for group in one.groups) for key, one in measured_once.items()}
    readings = drawn_studies(plan, measured_once, options.studies, np.random.default_rng(options.seed))
    return readings, truths, biases(plan, [measured_once])


def main() -> int:
    """Run the campaign; 0 if every rate is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000, help="number of simulated studies (2,000)")
    parser.add_argument("--students", type=int, default=400, help="measured at every point, to draw from (400)")
    parser.add_argument("--whole", action="store_true", help="every study measures students of its own")
    parser.add_argument(
        "--pairs", type=int, default=64, help="N, pairs of a student (64; at d < 4 as many coordinates)"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the studies")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.studies} studies of {options.pairs} pairs", flush=True)
    problems = []
    for title, claims in (("config/claims.yaml", declared_claims()), ("planted_claims.yaml", planted_claims())):
        print(f"\n{title}, K = {len(claims.tested)}", flush=True)
        plan = make_plan(claims, options.pairs)
        check_plan(plan)
        started = time.monotonic()
        readings, truths, found = simulate(plan, options)
        print(f"{time.monotonic() - started:.0f} s")
        problems += [f"{title}: {line}" for line in found + report(plan, tally(plan, readings, truths))]
    for line in problems:
        print(f"WRONG: {line}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
