"""Auditing results: is every artifact what it says it is, and what today's configuration and code would make?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dmdpipe.artifacts.checked import one_line
from dmdpipe.artifacts.dag import RunPlan, plan_run, plan_study, steps_below
from dmdpipe.artifacts.environment import Environment, expected_environment, lock_digest
from dmdpipe.artifacts.manifest import FILE_NAME, Manifest, read_manifest
from dmdpipe.artifacts.plan import PlannedStep
from dmdpipe.artifacts.portable import ANY_CPU
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.accepted import LOG, Acceptance, Acceptances, is_made_again, made_again, read_acceptances
from dmdpipe.audit.differences import code_differences, environment_differences, few, spec_differences
from dmdpipe.audit.inspection import Inspection, Kind, Problem, inspect_steps
from dmdpipe.audit.published import FILE as PUBLISHED
from dmdpipe.audit.published import (
    EnvironmentClass,
    PublishedClass,
    PublishedRoot,
    environment_class,
    read_published,
    relation,
)
from dmdpipe.audit.tree import step_folders
from dmdpipe.errors import UserError
from dmdpipe.specs.base import digest
from dmdpipe.specs.config import CONFIG_FOLDER, scale_names, study_names

# What a run leaves beside its steps, outside of every promise.
OUTSIDE = ("logs",)
REPORT_FILES = ("report.html", "audit.html")


def page_name(spec: Mapping[str, object]) -> str:
    """Return the name of a page of the report, as a manifest has its spec."""
    study = spec.get("study")
    return f"study_{study.get('name')}" if isinstance(study, Mapping) else str(spec.get("notebook"))


# What has a root of its own, and how it is called, given its spec.
ROOT_NAMES: dict[str, Callable[[Mapping[str, object]], str]] = {
    "evidence": lambda spec: str(spec.get("study")),
    "verdicts": lambda spec: "verdicts",
    "figures": lambda spec: f"page {page_name(spec)}",
}


@dataclass(frozen=True)
class Root:
    """One study's results at one scale, the verdicts on all of them, or a page of the report, as one digest.

    Attributes:
        stage: ``evidence``, ``verdicts`` or ``figures``.
        name: of the study, ``verdicts``, or ``page NAME``.
        scale: which.
        spec: digest of what was asked for: of the specs of all steps that it was made from.
        result: what came out of which spec: comparable across versions of the code and machines.
        provenance: made by which code in which environment.
        environment: the class of all steps that it was made from.
        published: in words, how it stands to the published digests.
    """

    stage: str
    name: str
    scale: str
    spec: str
    result: str
    provenance: str
    environment: EnvironmentClass
    published: str


@dataclass(frozen=True)
class Note:
    """A change that somebody accepted.

    Attributes:
        where: the step's folder.
        changes: what differs, by name.
        said: who accepted it, when and why.
    """

    where: str
    changes: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        results: the root of the results.
        steps: how many steps were looked at.
        size: bytes of payload that are what their manifests say.
        problems: everything that is wrong, worst first.
        notes: what is not wrong but should be known: accepted changes.
        gaps: what is not there, in words: steps that the configuration asks for at a scale of which something is there,
            and studies that have no root, since a step of theirs is damaged.
        roots: of every study, of the verdicts and of every page, of which every step is whole.
    """

    results: Path
    steps: int
    size: int
    problems: tuple[Problem, ...]
    notes: tuple[Note, ...]
    gaps: tuple[str, ...]
    roots: tuple[Root, ...]


@dataclass
class _Findings:
    inspections: Mapping[str, Inspection]
    planned: Mapping[str, PlannedStep]
    acceptances: Acceptances
    problems: list[Problem] = field(default_factory=list)
    notes: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def add(self, kind: Kind, where: str, what: str) -> None:
        self.problems.append(Problem(kind, where, what))

    def note(self, where: str, changes: Iterable[str], entry: Acceptance) -> None:
        # A table may have hundreds of parents that one entry speaks of.
        self.notes.setdefault((where, entry.said), {}).update(dict.fromkeys(changes))

    def manifest(self, folder: str) -> Manifest | None:
        inspection = self.inspections.get(folder)
        return inspection.manifest if inspection else None


def verify_tree(
    results: Path,
    only: Iterable[str] | None = None,
    config: Path = CONFIG_FOLDER,
    progress: Callable[[int, int], None] | None = None,
    run_plan: RunPlan | None = None,
) -> Audit:
    """Audit every step below the root of the results, or some of them with all that they were made from.

    Every payload file and manifest is hashed; every chain of parents is walked; every step is compared with what the
    configuration and the code ask for today, at every scale of which results are there. Memory does not grow with the
    size of payloads.

    Args:
        results: the root of the results.
        only: folders of steps below it; everything, and also what belongs to no step, if left out.
        config: the configuration folder.
        progress: is told how many steps are hashed, and how many there are.
        run_plan: what a run asked for; what the configuration asks for if left out.

    Raises:
        UserError: if there are no results, the configuration is wrong, or a folder in ``only`` is no step.
    """
    folders = step_folders(results)
    if not folders and only is None:
        raise UserError(f"{results}: holds no results; make some with ./run, or name their folder")
    chosen = folders if only is None else lineage(results, only)
    inspections = inspect_steps(results, chosen, progress)
    try:
        acceptances = read_acceptances(results)
        damage = None
    except UserError as error:
        acceptances, damage = Acceptances(), str(error)
    planned = todays_steps(results, folders, config) | (run_plan.steps if run_plan else {})
    found = _Findings(inspections, planned, acceptances)
    if damage:
        found.add(Kind.tampered, str(LOG), damage.removeprefix(f"{results}/{LOG}").lstrip(": "))
    for inspection in inspections.values():
        found.problems += inspection.problems
        if inspection.manifest:
            _check_identity(inspection.folder, inspection.manifest, found)
            _check_parents(inspection.folder, inspection.manifest, found)
            _check_today(inspection.folder, inspection.manifest, found)
    _check_cycles(found)
    _check_environments(found)
    if only is None:
        found.problems += strays(results, folders)
    roots = study_roots(inspections, read_published(config / PUBLISHED.name))
    gaps = studies_without_root(inspections, roots)
    if only is None:
        wanted = run_plan.steps if run_plan else steps_at_scales_there(results, folders, config)
        gaps += steps_not_made(folders, wanted)
    order = list(Kind)
    problems = [Problem(each.kind, one_line(each.where), one_line(each.what)) for each in found.problems]
    return Audit(
        results=results,
        steps=len(inspections),
        size=sum(inspection.size for inspection in inspections.values()),
        problems=tuple(sorted(problems, key=lambda problem: (order.index(problem.kind), problem.where))),
        notes=tuple(Note(one_line(where), tuple(changes), said) for (where, said), changes in found.notes.items()),
        gaps=tuple(gaps),
        roots=tuple(roots),
    )


def todays_steps(results: Path, folders: Collection[str], config: Path = CONFIG_FOLDER) -> dict[str, PlannedStep]:
    """Return every step that today's configuration asks for, by folder, at every scale of which results are there."""
    return {**steps_at_scales_there(results, folders, config), **full_plan(None, config).steps}


def steps_at_scales_there(results: Path, folders: Collection[str], config: Path) -> dict[str, PlannedStep]:
    """Return the steps of every scale of which there are tables, verdicts or pages, by folder."""
    there = {part for folder in folders if not _is_keyed(folder) for part in Path(folder).parts[1:]}
    scales = [name for name in scale_names(config) if name in there or (results / "report" / name).exists()]
    planned: dict[str, PlannedStep] = {}
    for scale in scales:
        plan = full_plan(scale, config)
        planned |= plan.steps
        # Studies that were started by name.
        for name in sorted(set(study_names(config)) - set(plan.studies)):
            if f"{STAGES['evidence'].folder}/{name}/{scale}" in folders:
                evidence = plan_study(name, scale, config).evidence
                planned |= {step.folder: step for step in steps_below(evidence)}
    return planned


def full_plan(scale: str | None, config: Path = CONFIG_FOLDER) -> RunPlan:
    """Return the plan of a run of the configured studies at a scale; the configured one if None."""
    return plan_run({"scale": scale} if scale else None, config)


def study_roots(inspections: Mapping[str, Inspection], published: Iterable[PublishedClass]) -> list[Root]:
    """Return the root of every study, of the verdicts and of every page, of which every step is whole."""
    known = list(published)
    roots = []
    for inspection in inspections.values():
        if not (inspection.manifest and inspection.manifest.result.stage in ROOT_NAMES):
            continue
        line = [inspections.get(folder) for folder in above(inspection.folder, inspections)]
        manifests = [each.manifest for each in line if each and each.manifest and each.is_whole]
        if len(manifests) < len(line):
            continue
        result, provenance = inspection.manifest.result, inspection.manifest.provenance
        name, scale = ROOT_NAMES[result.stage](result.spec), str(result.spec.get("scale"))
        environment = environment_class(manifests)
        # A page's own spec stays the same when other verdicts are asked for.
        asked = digest(sorted(manifest.result.digest for manifest in manifests))
        own = PublishedRoot(spec=asked, result_root=result.result_digest)
        said = relation(name, scale, own, environment, known)
        digests = asked, result.result_digest, provenance.provenance_digest
        roots.append(Root(result.stage, name, scale, *digests, environment, said))
    return sorted(roots, key=lambda root: (root.scale, list(ROOT_NAMES).index(root.stage), root.name))


def steps_not_made(folders: Iterable[str], planned: Mapping[str, PlannedStep]) -> list[str]:
    """Return in words how many of the planned steps, stage by stage, are not there; nothing if all are."""
    missing = Counter(planned[folder].stage for folder in planned.keys() - set(folders))
    if not missing:
        return []
    counts = ", ".join(f"{missing[name]} {name}" for name in STAGES if name in missing)
    return [f"not made yet, of what the configuration asks for: {counts}"]


def studies_without_root(inspections: Mapping[str, Inspection], roots: Iterable[Root]) -> list[str]:
    """Return a line for each study that is there and has no root."""
    known = {(root.name, root.scale) for root in roots if root.stage == "evidence"}
    evidence = [folder for folder in inspections if folder.startswith(f"{STAGES['evidence'].folder}/")]
    there = [tuple(folder.split("/")[1:]) for folder in evidence]
    return [
        f"{name} ({scale}): no root, since a step of it is damaged or missing"
        for name, scale in there
        if (name, scale) not in known
    ]


def above(folder: str, inspections: Mapping[str, Inspection]) -> set[str]:
    """Return a step's folder and those of all that it was made from, as manifests name them."""
    waiting, seen = [folder], set[str]()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            inspection = inspections.get(current)
            if inspection and inspection.manifest:
                waiting += [parent.folder for parent in inspection.manifest.result.parents.values()]
    return seen


def strays(results: Path, folders: Iterable[str]) -> list[Problem]:
    """Return every file, link and empty folder that belongs to no step and is not what a run leaves beside them."""
    steps = set(folders)
    found = []
    for here, names, files in os.walk(results):
        folder = Path(here).relative_to(results).as_posix()
        if folder in steps or folder in OUTSIDE:
            names.clear()
            continue
        links = [name for name in names if Path(here, name).is_symlink()]
        names[:] = sorted(name for name in names if not (folder == "." and name.startswith(".")))
        is_report = folder.startswith("report/") and folder.count("/") == 1
        for name in sorted([*files, *links]):
            path = Path(folder, name).as_posix()
            expected = path == str(LOG) or path.startswith(".") or (is_report and name in REPORT_FILES)
            if not expected:
                what = "is a link, which no run makes" if (results / path).is_symlink() else "belongs to no step"
                found.append(Problem(Kind.orphan, path, f"{what}; delete it"))
        if not names and not files and folder not in (".", str(LOG.parent)):
            found.append(Problem(Kind.orphan, folder, "is empty; delete it"))
    return found


def lineage(results: Path, folders: Iterable[str]) -> list[str]:
    """Return the folders and all that they were made from, by what their manifests say."""
    waiting, seen = list(folders), set[str]()
    while waiting:
        folder = waiting.pop()
        if folder in seen:
            continue
        seen.add(folder)
        try:
            waiting += [parent.folder for parent in read_manifest(results / folder / FILE_NAME).result.parents.values()]
        except UserError:
            continue
    return sorted(seen)


def _is_keyed(folder: str) -> bool:
    return next((stage.keyed for stage in STAGES.values() if folder.startswith(f"{stage.folder}/")), False)


def _check_identity(folder: str, manifest: Manifest, found: _Findings) -> None:
    """A manifest that is whole in itself may still lie in another step's folder, or name parents that are not its."""
    where = f"{folder}/{FILE_NAME}"
    stage = STAGES.get(manifest.result.stage)
    if stage is None:
        found.add(Kind.unknown_schema, where, f"is of a stage '{manifest.result.stage}' that this dmdpipe has not")
        return
    try:
        spec = stage.parse(manifest.result.spec)
    except UserError as error:
        found.add(Kind.stale_config, where, f"its spec is none any more ({error}); run again")
        return
    if stage.path(spec) != folder:
        found.add(Kind.tampered, where, f"belongs into {stage.path(spec)}; delete this folder, ./run makes it again")
    elif stage.digest(spec) != manifest.result.digest:
        found.add(Kind.stale_config, where, "its spec has gained or lost keys since; run again")
    if digest(manifest.provenance.modules) != manifest.provenance.code:
        found.add(Kind.tampered, where, "its code digest is not that of the definitions that it lists")
    payload = set(manifest.result.payload)
    if not set(stage.payload) <= payload or (payload > set(stage.payload) and not stage.more_files):
        found.add(Kind.tampered, where, f"lists {sorted(payload)}, a {stage.name} step writes {sorted(stage.payload)}")
    # What people open does not know its parents by its spec alone; today's plan does.
    step = found.planned.get(folder)
    if step is None or step.digest != manifest.result.digest:
        step = PlannedStep(stage.name, spec) if stage.keyed else None
    if step and {role: parent.folder for role, parent in step.parents.items()} != _named_parents(manifest):
        found.add(Kind.tampered, where, "names other parents than its spec; delete this folder, ./run makes it again")


def _named_parents(manifest: Manifest) -> dict[str, str]:
    return {role: parent.folder for role, parent in manifest.result.parents.items()}


def _check_parents(folder: str, manifest: Manifest, found: _Findings) -> None:
    for role, parent in manifest.result.parents.items():
        inspection = found.inspections.get(parent.folder)
        above = found.manifest(parent.folder)
        if inspection is None or above is None:
            # A damaged parent is reported itself.
            if inspection is None:
                found.add(Kind.missing, parent.folder, f"is not there, but {folder} was made from it; ./run makes it")
        elif above.result.result_digest != parent.result_digest:
            what = f"was made from another {role} than the one in {parent.folder}; ./run makes it again"
            found.add(Kind.stale_parent, folder, what)
        elif is_made_again(manifest, role, above):
            if entry := found.acceptances.find_parent(folder, manifest, role, above):
                found.note(folder, [made_again(parent.folder)], entry)
                continue
            which = role if role == parent.folder else f"{role} {parent.folder}"
            what = f"its {which} was made again since, with the same bytes, elsewhere or by other code"
            found.add(Kind.stale_parent, folder, f"{what}; ./run makes this again, or accept it")


def _check_today(folder: str, manifest: Manifest, found: _Findings) -> None:
    step = found.planned.get(folder)
    if step is None:
        _check_unwanted(folder, manifest, found)
        return
    if manifest.result.digest != step.digest:
        differences = spec_differences(manifest.result.spec, step.spec.model_dump(mode="json"))
        found.add(Kind.stale_config, folder, f"{few(differences)}; ./run makes it again")
    if manifest.provenance.code == step.code_digest:
        return
    changes = code_differences(manifest.provenance.modules, step.code.modules)
    if entry := found.acceptances.find(folder, manifest.provenance.code, step.code_digest):
        found.note(folder, changes, entry)
    else:
        found.add(Kind.stale_code, folder, f"{few(changes)}; ./run makes it again")


def _check_unwanted(folder: str, manifest: Manifest, found: _Findings) -> None:
    children = {
        parent.folder
        for inspection in found.inspections.values()
        if inspection.manifest
        for parent in inspection.manifest.result.parents.values()
    }
    if _is_keyed(folder) and folder not in children:
        found.add(Kind.orphan, folder, "no study asks for it today, and nothing was made from it; delete it")
        return
    nearest = nearest_planned(manifest, found.planned.values())
    if nearest is None:
        found.add(Kind.stale_config, folder, "no study asks for it today")
    else:
        differences = spec_differences(manifest.result.spec, nearest.spec.model_dump(mode="json"))
        what = f"no study asks for it today; the nearest that one does differs in {few(differences)}"
        found.add(Kind.stale_config, folder, what)


def nearest_planned(manifest: Manifest, planned: Iterable[PlannedStep]) -> PlannedStep | None:
    """Return the planned step of that stage whose spec differs from the manifest's in the fewest leaves, or None."""
    of_stage = [step for step in planned if step.stage == manifest.result.stage]
    return min(
        of_stage,
        key=lambda step: len(spec_differences(manifest.result.spec, step.spec.model_dump(mode="json"))),
        default=None,
    )


def _check_cycles(found: _Findings) -> None:
    """Seals make a cycle all but impossible; whoever walks to the parents must still come to an end."""
    done: set[str] = set()
    for start in found.inspections:
        path: list[str] = []
        stack = [(start, False)]
        while stack:
            folder, is_left = stack.pop()
            if is_left:
                path.pop()
                done.add(folder)
                continue
            if folder in path:
                way = path[path.index(folder) + 1 :]
                found.add(Kind.cycle, folder, "was made from itself" + (f", by way of {', '.join(way)}" if way else ""))
                continue
            manifest = found.manifest(folder)
            if folder in done or manifest is None:
                continue
            path.append(folder)
            stack.append((folder, True))
            stack += [(parent.folder, False) for parent in manifest.result.parents.values()]


def _check_environments(found: _Findings) -> None:
    """Compare each step's environment class and lock with those in which it would run here."""
    lock = lock_digest()
    expected: dict[tuple[tuple[str, ...], bool], Environment] = {}
    for folder, inspection in found.inspections.items():
        manifest = inspection.manifest
        stage = STAGES.get(manifest.result.stage) if manifest else None
        if manifest is None or stage is None:
            continue
        step = found.planned.get(folder)
        try:
            code = step.code if step else stage.code(stage.parse(manifest.result.spec))
        except UserError:
            continue
        portable = manifest.provenance.environment.cpu == ANY_CPU
        if (code.libraries, portable) not in expected:
            expected[code.libraries, portable] = expected_environment(code.libraries, portable)
        here = expected[code.libraries, portable]
        # Threads of a training stand in its spec; a device is chosen there, too.
        differences = environment_differences(manifest.provenance.environment, here, but=("threads", "device"))
        if differences:
            found.add(
                Kind.foreign_environment, folder, f"was made in another environment than this: {few(differences)}"
            )
        elif manifest.provenance.environment_lock != lock:
            what = "was made under other locks (envs/*.txt), with the same versions of all libraries that it uses"
            found.add(Kind.foreign_environment, folder, what)
