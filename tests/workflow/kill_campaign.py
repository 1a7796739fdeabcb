"""Kill a run at random moments; the next run must end in the same bytes, with nobody's help.

    ./run exec python tests/workflow/kill_campaign.py --kills 50

Every trial starts a toy study with all stages, from nothing or from results of which some steps were taken away. It
waits for a step of the stage whose turn it is and, at a random moment between that step's start and a little after its
end, sends SIGKILL to all processes at once (as a machine that stops), to the controllers alone, whose steps go on
without them, or to one step; or SIGTERM or SIGINT to the command, as a user would. Then it runs the study once more and
compares every published file with those of a run that nobody disturbed. Trainings save a checkpoint 20 times a second
here, so that those that are killed go on from one. The seed that it prints repeats the choices, though not the moments
to the microsecond.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkouts import copy_checkout
from toy_study import RUN, Tree, new_tree, published

LONGER = (
    ("config/scales/seconds.yaml", "score.steps: 10", "score.steps: 1000"),
    ("config/scales/seconds.yaml", "student.generator_steps: 4", "student.generator_steps: 200"),
    ("src/dmdpipe/diffusion/state.py", "SECONDS_BETWEEN_CHECKPOINTS = 15.0", "SECONDS_BETWEEN_CHECKPOINTS = 0.05"),
)
VICTIMS = ("everything", "everything", "controllers", "one step", "terminated", "interrupted")


def main() -> int:
    """Run the campaign; 0 if every trial ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of trials (50)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the choices")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.kills} kills", flush=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        failures = campaign(options.kills, random.Random(options.seed), Path(folder))
    print(f"{options.kills - failures} of {options.kills} runs ended in the same bytes after a kill")
    return int(failures > 0)


@dataclass(frozen=True)
class Aim:
    """A step to strike at, and how long after its start."""

    stage: str
    digest: str
    after: float


def campaign(kills: int, choices: random.Random, folder: Path) -> int:
    """Make the trials in ``folder``; print a line for each; return how many ended otherwise than an undisturbed run."""
    empty = new_tree(copy_checkout(folder / "empty"), cells=("digits", "ring"), pages=("gate",))
    for path, old, new in LONGER:
        empty.checkout.edit(path, old, new)
    shutil.copytree(empty.checkout.folder, folder / "whole")
    whole = Tree(type(empty.checkout)(folder / "whole"))
    whole.run()
    expected = published(whole)
    print(f"a run that nobody disturbed has published {len(expected)} files", flush=True)
    steps = [(path.parent, json.loads(path.read_text())["result"]) for path in find_manifests(whole)]
    stage_of = {result["digest"]: result["stage"] for _, result in steps}
    stages = sorted(set(stage_of.values()))
    failures = 0
    running: Counter[str] = Counter()
    for trial in range(kills):
        if trial % len(stages) == 0:
            choices.shuffle(stages)
        stage = stages[trial % len(stages)]
        at, result = choices.choice([step for step in steps if step[1]["stage"] == stage])
        seconds = json.loads((at / "run.json").read_text())["seconds"]
        aim = Aim(stage, result["digest"], choices.uniform(0, 1.2 * seconds))
        from_nothing = choices.random() < 0.5
        target = folder / "trial"
        shutil.copytree((empty if from_nothing else whole).checkout.folder, target, symlinks=True)
        tree = Tree(type(empty.checkout)(target))
        if not from_nothing:
            take_steps_away(tree, choices)
            shutil.rmtree(target / at.relative_to(folder / "whole"), ignore_errors=True)
        victim = choices.choice(VICTIMS)
        struck = kill(tree, victim, aim, choices, stage_of)
        running.update(struck)
        done = tree.checkout.dmdpipe(*RUN)
        found = published(tree)
        is_same = done.returncode == 0 and found == expected and tree.verify() == []
        failures += not is_same
        moment = f"{victim}, {1000 * aim.after:.0f} ms into {stage}, in {', '.join(struck) or 'no step'}"
        print(f"[{trial + 1}/{kills}] {'same bytes' if is_same else 'DIFFERENT'}: {moment}", flush=True)
        if not is_same:
            differing = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
            print(f"status {done.returncode}, differing: {sorted(differing)}\n{done.stdout}{done.stderr}", flush=True)
        shutil.rmtree(target)
    print("steps that were running when a kill came:", dict(running), flush=True)
    return failures


def find_manifests(tree: Tree) -> list[Path]:
    """Return every step's manifest."""
    return sorted((tree / "results").rglob("manifest.json"))


def take_steps_away(tree: Tree, choices: random.Random) -> None:
    """Delete a random half of the steps."""
    for manifest in find_manifests(tree):
        if choices.random() < 0.5:
            shutil.rmtree(manifest.parent)


def kill(tree: Tree, victim: str, aim: Aim, choices: random.Random, stage_of: dict[str, str]) -> list[str]:
    """Start a run, kill what ``victim`` says at the moment aimed at, and return the stages that were running then."""
    command = [str(Path(sys.executable).with_name("dmdpipe")), *RUN]
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, cwd=tree.checkout.folder, env=tree.checkout.environment(), **options) as run:
        while not any((tree / "results/.tmp").glob(f"{aim.digest}-*")):
            if run.poll() is not None:
                return []
            time.sleep(0.001)
        time.sleep(aim.after)
        family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
        struck = sorted({stage_of[path.name.partition("-")[0]] for path in (tree / "results/.tmp").glob("*-*-*")})
        if victim in ("terminated", "interrupted"):
            run.send_signal(signal.SIGTERM if victim == "terminated" else signal.SIGINT)
        for process in victims(family, victim, choices):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        run.wait()
        return struck


def victims(family: list[psutil.Process], victim: str, choices: random.Random) -> list[psutil.Process]:
    """Return the processes to kill."""
    if victim == "everything":
        return family
    # The command and Snakemake, whose steps are then nobody's children.
    controllers = [process for process in family if is_controller(process)]
    if victim == "controllers":
        return controllers
    others = [process for process in family if process not in controllers]
    return [choices.choice(others)] if victim == "one step" and others else []


def is_controller(process: psutil.Process) -> bool:
    """Whether a process is the command ``dmdpipe run`` or Snakemake."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    return any(word.endswith("/dmdpipe") for word in words[:2]) or words[1:3] == ["-m", "dmdpipe.snakemake_process"]


if __name__ == "__main__":
    sys.exit(main())
