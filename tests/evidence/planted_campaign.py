"""Simulate whole studies whose truth is planted, and count how often intervals and verdicts miss it.

    ./run exec python tests/evidence/planted_campaign.py --studies 2000 --processes 2

In each simulated study every criterion of config/claims.yaml lies exactly at its threshold. Every seed is a planted
student (``planted_pairs``) with a truth of its own, drawn around the point's. Its samples are measured by
``dmdpipe.copying.measure``, its metrics go into the studies' tables, and these are read and judged as after a real
run, with the seeds that the laptop scale declares. All seeds of a study share its noise bank, as in a real run. What is
not as in a real run: N pairs are few (``--pairs``), so that a study takes a second and not an hour.

What is counted:

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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from planted_outcomes import Place, declared_claims, declared_points, values_for, weights
from planted_pairs import measured, noise_bank
from scipy.stats import beta

from dmdpipe.evidence.intervals import sum_interval
from dmdpipe.evidence.power import PROBABILITY, detectable_difference
from dmdpipe.evidence.readings import Reading, read_criterion
from dmdpipe.evidence.results import per_seed_rows
from dmdpipe.evidence.verdicts import FAMILYWISE_ERROR, judge_claim
from dmdpipe.specs.claims import Claim, Claims, Criterion

PLANTED_IN_SAMPLES = {"rho": (0.15, 1.0), "rho_rotated": (0.15, 1.0), "rho_affine": (0.02, 0.6), "rho_floor": (0.01, 0.1)}
NEAR = {"rho": 0.5, "rho_rotated": 0.5, "rho_affine": 0.5, "rho_floor": 0.01}
SPREAD = 0.12  # standard deviation over seeds of a planted ρ; of other metrics a fifth
COVERAGE_ALLOWANCE = 0.01
ERROR_ALLOWANCE = 1.6  # times its level: Welch's approximation at its worst from 5 seeds up

Key = tuple[str, str]  # claim, criterion
Readings = dict[Key, Reading]


@dataclass(frozen=True)
class Plan:
    """What is planted: the claims, the points of their studies, and the true metrics at their thresholds."""

    claims: Claims
    points: Mapping[str, Mapping[str, Mapping]]
    truth: Mapping[Place, float]
    left_out: tuple[str, ...]
    pairs: int
    skewed: bool = False


def make_plan(claims: Claims, pairs: int, skewed: bool = False) -> Plan:
    """Return metric values at which as many criteria as possible lie at their thresholds at once."""
    points = declared_points(claims)
    listed = [(claim.id, one) for claim in claims.tested for one in claim.criteria]
    places, matrix = weights([one for _, one in listed], points)
    near = [NEAR.get(metric, 0.5) for _, _, metric in places]
    bounds = [PLANTED_IN_SAMPLES.get(metric, (-10.0, 10.0)) for _, _, metric in places]
    rows: list[int] = []
    values = np.array(near)
    left_out = []
    for row, (claim, one) in enumerate(listed):
        targets = [listed[i][1].threshold for i in [*rows, row]]
        found = None if not matrix[row].any() else values_for(matrix[[*rows, row]], targets, near, bounds)
        if found is None:
            left_out.append(f"{claim}, {one.name}: cannot lie at its threshold together with those before it")
        else:
            rows, values = [*rows, row], found
    truth = dict(zip(places, values.tolist(), strict=True))
    return Plan(claims, points, truth, tuple(left_out), pairs, skewed)


def read_study(plan: Plan, seed: int) -> Readings:
    """Simulate all studies once, from samples to readings."""
    return read_tables(plan, simulated_tables(plan, seed))


def read_tables(plan: Plan, tables: pd.DataFrame) -> Readings:
    """Return the reading of every criterion from the studies' results tables."""
    return {(claim.id, one.name): read_criterion(one, tables) for claim in plan.claims.tested for one in claim.criteria}


def simulated_tables(plan: Plan, seed: int, seeds: int | None = None) -> pd.DataFrame:
    """Return the rows of all studies' results tables, simulated once; ``seeds`` replaces the declared numbers."""
    rng = np.random.default_rng(seed)
    banks = {}
    tables = []
    for study, points in plan.points.items():
        cells = []
        for name, labels in points.items():
            truth = {metric: value for (s, point, metric), value in plan.truth.items() if (s, point) == (study, name)}
            if not truth:
                continue
            d = labels["d"]
            if d not in banks:
                banks[d] = noise_bank(rng, d, plan.pairs * max(1, 4 // d))
            bank = banks[d]
            for member in range(seeds or labels["seeds"]):
                own = {metric: around(rng, metric, value, plan.skewed) for metric, value in truth.items()}
                student = {metric: own[metric] for metric in PLANTED_IN_SAMPLES if metric in own}
                if "rho" not in student and "rho_rotated" in student:
                    student["rho"] = 0.8
                rows = measured(bank, rng, student, seed=member)
                for metric in own.keys() - PLANTED_IN_SAMPLES.keys():
                    rows = rows.assign(value=rows["value"].mask(rows["metric"] == metric, own[metric]))
                kept = rows["metric"].isin([*truth, "gate_ratio", "converged"])
                cells.append(({**labels, "seed": member}, rows[kept]))
        tables.append(per_seed_rows(study, "test", cells))
    return pd.concat(tables, ignore_index=True)


def around(rng: np.random.Generator, metric: str, centre: float, skewed: bool) -> float:
    """Draw one seed's true metric around the point's."""
    if metric not in PLANTED_IN_SAMPLES:
        return centre + SPREAD * rng.standard_normal()
    spread = min(SPREAD, centre / 4) if metric in ("rho", "rho_rotated") else centre / 5
    unit = rng.exponential() - 1 if skewed else np.clip(rng.standard_normal(), -3.5, 3.5)
    return centre + spread * unit


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


def tally(plan: Plan, readings: Sequence[Readings], truths: Mapping[Key, float] | None = None) -> Tally:
    """Judge every simulated study and count; the truth is each criterion's threshold unless told otherwise."""
    counts = Tally(studies=len(readings))
    alpha = FAMILYWISE_ERROR / len(plan.claims.tested)
    left_out = {line.split(":")[0] for line in plan.left_out}
    claims = [
        claim for claim in plan.claims.tested if not {f"{claim.id}, {one.name}" for one in claim.criteria} & left_out
    ]
    truth = {
        (claim.id, one.name): one.threshold if truths is None else truths[claim.id, one.name]
        for claim in claims
        for one in claim.criteria
    }
    shifts = {
        (claim.id, one.name): difference_to_tell(readings, (claim.id, one.name), alpha)
        for claim in claims
        for one in claim.criteria
    }
    for study in readings:
        seen = set()
        for claim in claims:
            at_edge = moved(claim, {one.name: truth[claim.id, one.name] for one in claim.criteria})
            mine = [study[claim.id, one.name] for one in claim.criteria]
            for one, reading in zip(claim.criteria, mine, strict=True):
                interval = sum_interval(reading.groups, 0.95)
                if np.isfinite(interval.low):
                    at = truth[claim.id, one.name]
                    kind = f"{kind_of(one, reading)} ({' and '.join(map(str, reading.seeds_run))} seeds)"
                    counts.covered.setdefault(kind, Counter())[interval.low <= at <= interval.high] += 1
                counts.runs["runs"] += reading.runs
                counts.runs["dropped"] += len(reading.dropped)
            verdict = judge_claim(at_edge, mine, alpha).verdict
            counts.verdicts.setdefault(claim.id, Counter())[verdict] += 1
            seen.add(verdict)
            for one in claim.criteria:
                key = (claim.id, one.name)
                if len(claim.criteria) > 1:
                    others = {
                        other.name: truth[claim.id, other.name] + (0 if other is one else -10 * side(other))
                        for other in claim.criteria
                    }
                    hardest = judge_claim(moved(claim, others), mine, alpha).verdict
                    counts.hardest.setdefault(key, Counter())[hardest] += 1
                easier = moved(claim, {one.name: truth[key] - shifts[key] * side(one)})
                outcomes = {f.criterion: f.outcome for f in judge_claim(easier, mine, alpha).findings}
                counts.held.setdefault(key, Counter())[outcomes[one.name]] += 1
        counts.family["supported"] += "supported" in seen
        counts.family["refuted"] += "refuted" in seen
    return counts


def side(criterion: Criterion) -> int:
    return 1 if criterion.predicts == "above" else -1


def moved(claim: Claim, thresholds: Mapping[str, float]) -> Claim:
    """Return the claim with other thresholds for the criteria that are named."""
    criteria = tuple(
        one.model_copy(update={"threshold": thresholds.get(one.name, one.threshold)}) for one in claim.criteria
    )
    return claim.model_copy(update={"criteria": criteria})


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


def difference_to_tell(readings: Sequence[Readings], key: Key, alpha: float) -> float:
    """Return the difference that the declared seeds, all of which count, hold with probability 0.8 if σ is known."""
    whole = [study[key] for study in readings if study[key].n_seeds == study[key].seeds_run]
    spreads = np.sqrt(np.mean([[group.var(ddof=1) for group in one.groups] for one in whole], axis=0))
    return detectable_difference(whole[0].n_seeds, spreads, alpha)


# The report


def limits(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper–Pearson interval of a rate."""
    tail = (1 - confidence) / 2
    low = beta.ppf(tail, count, total - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def report(plan: Plan, counts: Tally, say: Callable[[str], None] = print) -> list[str]:
    """Print all rates with their 95 % intervals; return those that are worse than they may be."""
    problems = []
    alpha = FAMILYWISE_ERROR / len(plan.claims.tested)

    def rate(what: str, count: int, total: int, least: float = 0.0, most: float = 1.0) -> None:
        low, high = limits(count, total)
        say(f"  {what:72} {count / total:7.4f} [{low:.4f}, {high:.4f}]")
        surely_low, surely_high = limits(count, total, 0.998)
        if surely_high < least or surely_low > most:
            problems.append(f"{what}: {count / total:.4f}, and not {least:.4g} to {most:.4g}")

    say("coverage of the 95 % intervals")
    for kind, covered in sorted(counts.covered.items()):
        rate(kind, covered[True], covered.total(), least=0.95 - COVERAGE_ALLOWANCE)
    say(f"wrong verdicts at the threshold, each claim at most {alpha:.4f}")
    for claim, verdicts in counts.verdicts.items():
        for wrong in ("supported", "refuted"):
            rate(f"{claim} {wrong}", verdicts[wrong], counts.studies, most=ERROR_ALLOWANCE * alpha)
    say(f"support with one criterion at its threshold, all others sure, at most {alpha:.4f}")
    for (claim, criterion), verdicts in counts.hardest.items():
        rate(f"{claim}, {criterion}", verdicts["supported"], counts.studies, most=ERROR_ALLOWANCE * alpha)
    say(f"any wrong verdict over all {len(counts.verdicts)} claims, at most {FAMILYWISE_ERROR}")
    for wrong in ("supported", "refuted"):
        rate(f"any {wrong}", counts.family[wrong], counts.studies, most=FAMILYWISE_ERROR)
    say(f"power where {PROBABILITY:g} is said, less what the gate takes")
    for (claim, criterion), outcomes in counts.held.items():
        rate(f"{claim}, {criterion}", outcomes["holds"], counts.studies, least=PROBABILITY - 0.15)
    say(f"runs over the gate though converged: {counts.runs['dropped']} of {counts.runs['runs']}")
    return problems


def check_plan(plan: Plan, say: Callable[[str], None] = print) -> None:
    """Say what is planted where."""
    for (study, point, metric), value in sorted(plan.truth.items()):
        how = "samples" if metric in PLANTED_IN_SAMPLES else "the table"
        say(f"  {study}, {point}: {metric} = {value:.4g}, planted in {how}")
    for line in plan.left_out:
        say(f"  left out: {line}")


def main() -> int:
    """Run the campaign; 0 if every rate is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2_000, help="number of simulated studies (2,000)")
    parser.add_argument("--pairs", type=int, default=64, help="N, pairs of a student (64; at d < 4 as many coordinates)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--skewed", action="store_true", help="seeds' truths are exponential, not normal; no bounds hold")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the studies")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.studies} studies of {options.pairs} pairs", flush=True)
    plan = make_plan(declared_claims(), options.pairs, options.skewed)
    check_plan(plan)
    started = time.monotonic()
    seeds = np.random.SeedSequence(options.seed).generate_state(options.studies, dtype=np.uint64).tolist()
    readings: list[Readings] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for done in pool.map(partial(read_study, plan), seeds, chunksize=5):
            readings.append(done)
            if len(readings) % 100 == 0:
                print(f"{time.monotonic() - started:5.0f} s  {len(readings)} studies", flush=True)
    problems = report(plan, tally(plan, readings))
    for line in problems:
        print(f"WRONG: {line}")
    return int(bool(problems) and not options.skewed)


if __name__ == "__main__":
    sys.exit(main())
