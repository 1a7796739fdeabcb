"""Rehearse the image studies of the scale gpu on a CPU, at toy size: every step by the real workflow.

    ./run exec python tests/workflow/rehearse_gpu.py
    ./run exec python tests/workflow/rehearse_gpu.py --short

It takes every study whose students at the scale gpu are U-Nets, in a copy of the checkout, where an overlay lays other
numbers over those of the scale: fewer steps, smaller batches, banks and networks, and the CPU for the GPU. Then the
command `dmdpipe run` makes everything from data to report. The specs that the steps have stored are compared, field by
field, with those that the scale gpu plans: what is not in the printed list of reduced fields must be equal. For
Fashion-MNIST stand a few random images with random labels, so no number means anything, and no network is needed.

--short takes, of all points that are alike, the one of fewest coordinates. Alike are those whose specs are equal but
for what is reduced, seeds, and their data, of which only the family counts. Status 1 if anything is amiss.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkouts import ROOT, Checkout, copy_checkout
from safetensors.numpy import load_file
from toy_mirror import mirror_for

from dmdpipe.artifacts.dag import steps_below
from dmdpipe.artifacts.plan import PlannedStep, plan
from dmdpipe.artifacts.stages import find_stage
from dmdpipe.specs.base import Spec
from dmdpipe.specs.config import members_of, study_names
from dmdpipe.specs.data import dimension
from dmdpipe.specs.grid import Member
from dmdpipe.specs.network import network_name
from dmdpipe.specs.pairs import MetricsSpec

SCALE = "gpu"
REDUCED: dict[str, Any] = {
    "data.n_train": 400,
    "score.device": "cpu",
    "score.network.channels": 8,
    "score.steps": 4,
    "score.batch": 4,
    "student.device": "cpu",
    "student.generator_steps": 4,
    "student.batch": 4,
    "sampler.device": "cpu",
    "sampler.steps": 1,
    "bank.n_paired": 32,
    "bank.n_held_out": 0,  # twice the largest d of a study's points, the fewest that an affine map is fitted on
    "bank.n_reference_sets": 2,
}
FOLLOWS = {"student.network.channels"}  # the student's network is the teacher's


def main() -> int:
    """Rehearse; 0 if every step was made and every spec is the scale's but for what is reduced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="of points that are alike only the smallest")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each point (1)")
    parser.add_argument("--cores", type=int, default=2, help="steps at a time (2)")
    parser.add_argument("--keep", type=Path, help="new folder for checkout and results (a temporary one)")
    options = parser.parse_args()
    studies = image_studies()
    chosen = representatives(studies) if options.short else studies
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        folder = options.keep or Path(temporary)
        checkout = copy_checkout(folder / "checkout")
        for name, members in chosen.items():
            lay_reduced_over(checkout, name, members, options.seeds)
        started = time.monotonic()
        with mirror_for(checkout, folder / "mirror"):
            config = ["--config", f"scale={SCALE}", f"studies=[{', '.join(chosen)}]"]
            done = checkout.dmdpipe("run", *config, "--cores", str(options.cores), timeout=7_200)
        if done.returncode:
            print(done.stdout + done.stderr)
            return 1
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"the run took {time.monotonic() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU time")
        return int(report(checkout, studies, chosen))


def image_studies() -> dict[str, list[Member]]:
    """Return the members at the scale gpu of every study whose students there are U-Nets."""
    config = ROOT / "config"
    everything = {name: members_of(name, SCALE, config) for name in study_names(config)}
    return {
        name: of_images
        for name, members in everything.items()
        if (of_images := [member for member in members if member.spec.pairs.student.network.kind == "unet"])
    }


def fields(spec: Spec, place: str = "") -> dict[str, Any]:
    """Return the value of every field of a spec and those in it by its dotted path, those left out of the JSON, too."""
    found: dict[str, Any] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        found |= fields(value, f"{place}{name}.") if isinstance(value, Spec) else {f"{place}{name}": value}
    return found


def differences(full: Spec, toy: Spec) -> dict[str, tuple[Any, Any]]:
    """Return both values of every field in which two specs differ, by its dotted path."""
    before, now = fields(full), fields(toy)
    paths = sorted(before.keys() | now.keys())
    return {path: (before.get(path), now.get(path)) for path in paths if before.get(path) != now.get(path)}


def is_one_of(path: str, keys: Any) -> bool:
    """Whether a dotted path of a whole spec ends in one of the keys, as `score.steps`."""
    return any(path.endswith(f".{key}") for key in keys)


def is_reduced(path: str) -> bool:
    """Whether the rehearsal may have another value there."""
    return is_one_of(path, REDUCED) or is_one_of(path, FOLLOWS)


def likeness(spec: MetricsSpec) -> frozenset[tuple[str, str]]:
    """Return every field but what is reduced, the seeds, and the data's own beside the family, with what follows."""
    ignored = ("seed", "bank.dim")
    return frozenset(
        (path, repr(value))
        for path, value in fields(spec).items()
        if not (is_reduced(path) or is_one_of(path, ignored))
        and (".data." not in path or is_one_of(path, ["data.family"]))
    )


def representatives(studies: dict[str, list[Member]]) -> dict[str, list[Member]]:
    """Return, of all members that are alike, the points of those with the fewest coordinates."""
    smallest: dict[frozenset[tuple[str, str]], tuple[int, str, str]] = {}
    for name, members in studies.items():
        for member in members:
            found = (dimension(member.spec.pairs.student.teacher.data), name, member.point)
            key = likeness(member.spec)
            smallest[key] = min(smallest.get(key, found), found, key=lambda one: one[0])
    points = {(name, point) for _, name, point in smallest.values()}
    chosen = {name: [m for m in members if (name, m.point) in points] for name, members in studies.items()}
    return {name: members for name, members in chosen.items() if members}


def lay_reduced_over(checkout: Checkout, name: str, members: list[Member], seeds: int) -> None:
    """Let a study of the copied checkout have these points alone, so many seeds, and the reduced numbers."""
    path = checkout / f"config/studies/{name}.yaml"
    study = yaml.safe_load(path.read_text())
    overlay = study["scales"][SCALE]
    (axis,) = study["axes"]
    labels = dict.fromkeys(member.point.removeprefix(f"{axis}=") for member in members)
    held_out = 2 * max(dimension(member.spec.pairs.student.teacher.data) for member in members)
    overlay |= {"axes": {axis: list(labels)}, "seeds": seeds, "seeds_at": {}}
    overlay["set"] = overlay.get("set", {}) | REDUCED | {"bank.n_held_out": held_out}
    path.write_text(yaml.safe_dump(study, sort_keys=False, allow_unicode=True))


def report(checkout: Checkout, studies: dict[str, list[Member]], chosen: dict[str, list[Member]]) -> bool:
    """Print what ran, study by study, and what is reduced; return whether anything is amiss."""
    problems: list[str] = []
    reduced: dict[str, set[str]] = {}
    rehearsed = set()
    for name in chosen:
        members = members_of(name, SCALE, checkout / "config")
        planned = {(member.point, member.seed): member.spec for member in studies[name]}
        steps: dict[str, PlannedStep] = {}
        for member in members:
            metrics = plan("metrics", member.spec)
            steps |= {step.folder: step for step in steps_below(metrics)}
            of_student, wrong = look_at(checkout / "results", metrics)
            problems += [f"{name}, {member.point}, seed {member.seed}: {problem}" for problem in wrong]
            rehearsed.add(likeness(of_student))
            for path, (before, now) in differences(planned[member.point, member.seed], of_student).items():
                if is_reduced(path):
                    reduced.setdefault(".".join(path.split(".")[-2:]), set()).add(f"{before} → {now}")
                else:
                    problems.append(f"{name}, {member.point}: {path} is {now}, but at the scale {SCALE} {before}")
        problems += missing(checkout / "results", steps)
        page = checkout / f"results/report/{SCALE}/study_{name}/notebook.html"
        if not page.is_file() or "Traceback" in page.read_text() or "<img" not in page.read_text():
            problems.append(f"{name}: no page with figures")
        facts = [json.loads((checkout / "results" / folder / "run.json").read_text()) for folder in steps]
        counts = Counter(step.stage for step in steps.values())
        print(f"\n{name}: {len(steps)} steps, {sum(fact['seconds'] for fact in facts):.0f} s,", end=" ")
        print(", ".join(f"{count} {stage}" for stage, count in counts.items()))
        for member in members:
            print(f"    {member.point}: {described(member)}")
    wanted = {likeness(member.spec) for members in studies.values() for member in members}
    problems += [f"not rehearsed: {dict(one)}" for one in wanted - rehearsed]
    print(f"\n{len(rehearsed & wanted)} of {len(wanted)} combinations of the scale {SCALE} were rehearsed")
    print("reduced, all else equal:")
    for path, values in sorted(reduced.items()):
        print(f"    {path}: {'; '.join(sorted(values))}")
    for problem in problems:
        print(f"AMISS: {problem}")
    return bool(problems)


def described(member: Member) -> str:
    """Return what a student is made with, in words."""
    student = member.spec.pairs.student
    return (
        f"{network_name(student.network)}, {student.init.kind}, {student.recipe.name}, teacher in"
        f" {student.teacher.score.precision}, student in {student.precision}, d={member.labels()['d']}"
    )


def look_at(results: Path, metrics: PlannedStep) -> tuple[MetricsSpec, list[str]]:
    """Return the spec that a student's metrics have stored, and what is wrong with student and metrics."""
    manifest = json.loads((results / metrics.folder / "manifest.json").read_text())
    spec = MetricsSpec.model_validate(manifest["result"]["spec"])
    pairs = load_file(results / metrics.parents["pairs"].folder / "pairs.safetensors")
    table = pd.read_parquet(results / metrics.folder / "metrics.parquet")
    rho = table[table["metric"] == "rho"]["value"]
    wrong = []
    if not math.isfinite(pairs["student"].sum() + pairs["teacher"].sum()):
        wrong.append("samples that are no numbers")
    if (pairs["student"][-1] == pairs["student"][0]).all():
        wrong.append("the student has not changed")
    if len(rho) != len(pairs["generator_step"]) or not rho.map(math.isfinite).all():
        wrong.append("no rho at every snapshot")
    return spec, wrong


def missing(results: Path, steps: dict[str, PlannedStep]) -> list[str]:
    """Return which files of the steps are not there."""
    paths = [f"{folder}/{name}" for folder, step in steps.items() for name in find_stage(step.stage).payload]
    return [f"there is no {path}" for path in paths if not (results / path).is_file()]


if __name__ == "__main__":
    sys.exit(main())
