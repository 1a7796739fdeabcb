"""``dmdpipe run``: check the configuration, run Snakemake, make the report, say what came out."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from dmdpipe.artifacts import portable
from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import read_bytes
from dmdpipe.artifacts.dag import RunPlan, plan_run, steps_below
from dmdpipe.artifacts.disk import failures_told
from dmdpipe.artifacts.environment import ONE_THREAD
from dmdpipe.artifacts.links import refuse_links
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.artifacts.ticket import void_tickets
from dmdpipe.audit.accepted import read_acceptances
from dmdpipe.audit.differences import few
from dmdpipe.audit.inspection import Kind
from dmdpipe.audit.status import PLAN, State, Status, assess
from dmdpipe.audit.tree import read_artifact
from dmdpipe.audit.verify import verify_tree
from dmdpipe.audit.words import audit_page, problem_lines, summary_lines
from dmdpipe.cost import seconds_by_rule
from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.forking.server import fork_server
from dmdpipe.slurm import SLURM, cancel_left_jobs, job_prefix, status_command
from dmdpipe.snakemake_arguments import (
    LOCAL,
    asks_for_all,
    config_overrides,
    executor_of,
    forces,
    plans_all_steps,
    plans_steps,
    runs_nothing,
    status_settings_of,
    with_config,
    with_forced,
)
from dmdpipe.specs.config import study_names
from dmdpipe.tables import verdict_text
from snakemake_logger_plugin_dmdpipe.tracking import LAST_RUN, LOOK

PR_SET_PDEATHSIG = 1
MOST_ROUNDS = 3
MOST_REASONS = 5


def run_workflow(arguments: list[str]) -> int:
    """Run Snakemake with ``arguments`` and, after a whole run, make the report and print the verdicts.

    Returns:
        Snakemake's exit status.

    Raises:
        UserError: if the configuration is wrong; nothing is run then.
    """
    if not Path("Snakefile").exists():
        raise UserError("there is no Snakefile here; run this in the folder of your checkout")
    arguments, run_plan = with_studies_named(arguments)
    results = Path(run_plan.config.results)
    steps = wanted_steps(arguments, run_plan)
    refuse_links(results)
    _check_snakemake_folder()
    executor = executor_of(arguments)
    is_real = plans_steps(arguments) and not runs_nothing(arguments)
    if executor == SLURM:
        arguments = [*arguments, "--slurm-jobname-prefix", job_prefix(results)]
        if is_real:
            arguments += ["--slurm-status-command", status_command(*status_settings_of(arguments))]
    with alone(results):
        if is_real:
            _end_earlier_run(results, executor)
        os.environ.update({**ONE_THREAD, "DMDPIPE_RESULTS": str(results)})
        if os.environ.get(portable.SWITCH) == "1":
            os.environ.update(portable.VARIABLES)
        status = _run_steps(arguments, steps, results, executor)
        if status == 0 and is_whole_run(arguments, run_plan):
            _report(run_plan, results, config_overrides(arguments))
    return status


def _end_earlier_run(results: Path, executor: str) -> None:
    """Take from jobs that an earlier run left behind the right to publish, then their folders; on SLURM, end them."""
    if executor == SLURM and (left := cancel_left_jobs(results)):
        words = "1 job" if len(left) == 1 else f"{len(left)} jobs"
        print(f"dmdpipe: cancelled {words} that an earlier run left in SLURM: {few(left)}", file=sys.stderr)
    void_tickets(results)
    shutil.rmtree(results / ".tmp", ignore_errors=True)


def _run_steps(arguments: list[str], steps: list[PlannedStep], results: Path, executor: str) -> int:
    """Have Snakemake run exactly the steps that are not current, and return its exit status.

    Again if that made others stale: a parent that is made again in another environment can come out differently. What
    the user forces runs once; Snakemake itself sees to what lies below it.
    """
    if not plans_steps(arguments):
        return _snakemake(arguments)
    acceptances = read_acceptances(results)
    is_forced = forces(arguments)
    statuses = assess(steps, results, acceptances)
    if are_current(statuses) and asks_for_all(arguments):
        # Snakemake would say the same, and need longer for it than all else here.
        print("Nothing to be done: all steps are up to date.", file=sys.stderr)
        return 0
    for _ in range(MOST_ROUNDS):
        is_idle = runs_nothing(arguments) or (are_current(statuses) and not is_forced)
        # What is known of the last run that ran anything stays as it is.
        plan = _write_plan(statuses, results, LOOK if is_idle else LAST_RUN)
        _say_what_is_out_of_date(statuses)
        if not is_forced:  # what is forced may lie behind steps that are current
            os.environ[PLAN] = str(plan)
        # The server starts steps on this machine only, outside of what a cluster's job may use.
        with fork_server() if executor == LOCAL and not is_idle else nullcontext():
            status = _snakemake(with_forced(arguments, to_force(statuses.values(), results)))
        if is_idle:
            plan.unlink()
        if status or is_idle or is_forced:
            break
        before, statuses = statuses, assess(steps, results, acceptances)
        if are_current(statuses) or not_current(statuses) == not_current(before):
            break
    os.environ.pop(PLAN, None)
    return status


def not_current(statuses: Mapping[str, Status]) -> set[str]:
    """Return the folders of the steps that must run."""
    return {folder for folder, status in statuses.items() if status.state is not State.current}


def are_current(statuses: Mapping[str, Status]) -> bool:
    """Whether none of the steps must run."""
    return not not_current(statuses)


def to_force(statuses: Collection[Status], results: Path) -> list[str]:
    """Return what to force, as manifests or names of rules, so that exactly the steps that are not current run.

    A rule of which every step must run is forced by its name, which keeps the command line short. A step that nothing
    else to run needs must be named itself: to the steps that are current Snakemake sees no way.
    """
    of_stage: dict[str, list[Status]] = {}
    for status in statuses:
        of_stage.setdefault(status.step.stage, []).append(status)
    stale = [status.step for status in statuses if status.state is not State.current]
    needed = {parent.folder for step in stale for parent in step.parents.values()}
    whole = {stage for stage, all_of in of_stage.items() if all(s.state is not State.current for s in all_of)}
    by_file = [step for step in stale if step.stage not in whole or step.folder not in needed]
    return [*sorted(whole), *(f"{results}/{step.folder}/manifest.json" for step in by_file)]


def wanted_steps(arguments: list[str], run_plan: RunPlan) -> list[PlannedStep]:
    """Return the steps that the targets among the arguments need, parents first; all if there is no target."""
    results = f"{run_plan.config.results}/"
    targets = {f"study_{name}": study.evidence for name, study in run_plan.studies.items()}
    wanted: dict[str, PlannedStep] = {}
    for word in arguments:
        named = targets.get(word)
        if word.startswith(results):
            named = next(
                (step for step in run_plan.steps.values() if f"{word}/".startswith(f"{results}{step.folder}/")), None
            )
        if named:
            wanted |= {step.folder: step for step in steps_below(named)}
    return list((wanted or run_plan.steps).values())


def is_led_by_a_parent(status: Status) -> bool:
    """Whether a step runs again for no reason but that its parents do, or did."""
    return status.kind is Kind.stale_parent


def _say_what_is_out_of_date(statuses: Mapping[str, Status]) -> None:
    """Say on stderr why steps run again that had been made before, a line for each reason; not their children."""
    for state, words in ((State.stale, "out of date"), (State.damaged, "damaged")):
        of_state = [status for status in statuses.values() if status.state is state]
        reasons = Counter(few(list(status.reasons)) for status in of_state if not is_led_by_a_parent(status))
        for reason, count in reasons.most_common(MOST_REASONS):
            print(f"dmdpipe: {count} {'step is' if count == 1 else 'steps are'} {words}: {reason}", file=sys.stderr)
        if len(reasons) > MOST_REASONS:
            print(f"dmdpipe: … and for {len(reasons) - MOST_REASONS} other reasons", file=sys.stderr)


@contextmanager
def alone(results: Path) -> Iterator[None]:
    """Keep a second run away from the results, and clear the lock that a killed run of ours left in Snakemake's folder.

    Raises:
        UserError: if another run is using the results.
    """
    with failures_told(results):
        results.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(results / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{results}: another run is using this folder; wait for it to end") from None
        except OSError as error:  # Lustre without flock, NFS without its lock daemon
            print(
                f"dmdpipe: {results}: its file system has no locks ({error.strerror}): see to it that no second run uses"
                " this folder",
                file=sys.stderr,
            )
        if any(Path(".snakemake/locks").glob("*")):
            subprocess.run([sys.executable, "-m", "snakemake", "--unlock", "--quiet", "all"], check=False)
        yield


def _check_snakemake_folder() -> None:
    """Check that Snakemake can keep its own records here; without them it ends in a traceback.

    Raises:
        UserError: if it cannot.
    """
    folder = Path(".snakemake")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, where Snakemake keeps its records in a folder; move it away")
    with failures_told(folder):
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"0")


def with_studies_named(arguments: list[str]) -> tuple[list[str], RunPlan]:
    """Return the arguments, with every study that a target like ``study_dimension`` names among those that run, and
    the plan of that run.

    Raises:
        UserError: if the configuration is wrong, or a target names no study; it says which is nearest.
    """
    run_plan = plan_run(config_overrides(arguments))
    known = [f"study_{name}" for name in study_names()]
    named = [word for word in arguments if word.startswith("study_")]
    for word in named:
        if word not in known:
            raise UserError(f"there is no study for the target '{word}'{did_you_mean(word, known)}")
    others = dict.fromkeys(name for word in named if (name := word.removeprefix("study_")) not in run_plan.studies)
    if not others:
        return arguments, run_plan
    arguments = with_config(arguments, f"studies=[{', '.join([*run_plan.studies, *others])}]")
    return arguments, plan_run(config_overrides(arguments))


def is_whole_run(arguments: list[str], run_plan: RunPlan) -> bool:
    """Whether the arguments ask for everything and really run it, rather than for a study, a rule, a file, a look."""
    for word in arguments:
        if word in STAGES or word.startswith((f"{run_plan.config.results}/", "study_")):
            return False
    return plans_all_steps(arguments)


def _snakemake(arguments: list[str]) -> int:
    """Run Snakemake and return its exit status; SIGINT and SIGTERM both stop it and its jobs as Ctrl-C would.

    In a process group of its own, so that a signal reaches it once. Never as SIGTERM, whose handler in Snakemake waits
    for a lock that the interrupted code may be holding. If this process is killed it dies, too: left alone, it would
    delete what its failing jobs had promised, in the middle of the next run.
    """
    given = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "dmdpipe.snakemake_process", *arguments]
    process = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_parent)

    def stop(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)

    # Where SIGINT was ignored, as behind nohup, it still is.
    signal.signal(signal.SIGINT, signal.SIG_IGN if given == signal.SIG_IGN else stop)
    terminated = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, given)
        signal.signal(signal.SIGTERM, terminated)


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; on Linux only, elsewhere nothing."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _write_plan(statuses: Mapping[str, Status], results: Path, name: str) -> Path:
    """Tell the display how long steps take, and why each runs again, by its manifest; return the file."""
    folder = results / ".progress"
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "seconds": seconds_by_rule(status.step for status in statuses.values()),
        "reasons": {
            f"{results}/{status.step.folder}/manifest.json": status.reasons[0]
            for status in statuses.values()
            if status.reasons
        },
    }
    with failures_told(results):
        write_atomically(folder / name, json.dumps(plan).encode())
    return folder / name


def _report(run_plan: RunPlan, results: Path, overrides: dict[str, Any]) -> None:
    folder = results / "report" / run_plan.config.scale
    report = folder / "report.html"
    verdicts = results / run_plan.verdicts.folder
    newest = max(
        (results / step.folder / "manifest.json").stat().st_mtime
        for step in [run_plan.verdicts, *run_plan.notebooks.values()]
    )
    if not report.exists() or report.stat().st_mtime < newest:
        given = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        quiet = ["--quiet", "all"]
        if _snakemake(["--report", str(report), *quiet, *(["--config", *given] if given else [])]):
            raise UserError(f"{report}: Snakemake could not make its report; the pages in {folder} are complete")
    print(f"\nverdicts ({run_plan.config.scale} scale)\n")
    print(verdict_text(json.loads(read_artifact(verdicts).read("verdicts.json"))))
    audit = verify_tree(results, run_plan=run_plan)
    page = audit_page(audit, run_plan.config.scale).encode()
    with failures_told(folder):
        if not (folder / "audit.html").exists() or read_bytes(folder / "audit.html") != page:
            write_atomically(folder / "audit.html", page)
    print("\naudit\n")
    for line in [*problem_lines(audit), *summary_lines(audit, run_plan.config.scale)]:
        print(line)
    print(f"\nreport:       {folder / 'overview' / 'notebook.html'}  (start here)")
    print(f"all pages:    {report}")
    print(f"audit:        {folder / 'audit.html'}")
    print(f"every number: dmdpipe results --scale {run_plan.config.scale} --format csv")
