"""Two trees of results compared artifact by artifact, each with a class and the reason for it.

A step is held to what its stage declares (``Stage.equality``), given the same inputs. Where an input differs by
rounding, the step below it can be held to rounding only; below an input that was trained again and came out otherwise,
to the same distribution over seeds only. That is tested where there are seeds, in the tables of the studies
(``dmdpipe.audit.seed_tests``), and every step that such a study is made of takes the studies' answer. The verdicts over
compatible studies are compatible if the words are the same, and the figures if the verdicts are that they are drawn
from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from dmdpipe.artifacts.checked import one_line
from dmdpipe.artifacts.stages import STAGES
from dmdpipe.audit.comparisons import Comparison
from dmdpipe.audit.pairs import STRICTNESS, Pair, read_pair, spec_change
from dmdpipe.audit.tree import Artifact, read_artifact, step_folders
from dmdpipe.errors import UserError


class Agreement(StrEnum):
    """How two artifacts of one spec agree, the worst first."""

    different = "different"
    only_in_a = "only in A"
    only_in_b = "only in B"
    statistical = "statistically compatible"
    tolerance = "equal within tolerance"
    identical = "identical"

    @property
    def reproduces(self) -> bool:
        """Whether one artifact counts as a reproduction of the other."""
        return self in (Agreement.identical, Agreement.tolerance, Agreement.statistical)


@dataclass(frozen=True)
class ArtifactComparison:
    """How the artifacts in one folder of two trees compare.

    Attributes:
        folder: below the root of both results.
        stage: the kind of step; empty if its manifest cannot be read.
        agreement: the class.
        reason: why it is no better, in one line; empty if identical.
        files: how its files compare, by name; empty where there is nothing to compare.
        largest: the one of these files that differs most.
    """

    folder: str
    stage: str
    agreement: Agreement
    reason: str = ""
    files: tuple[Comparison, ...] = ()
    largest: Comparison | None = None


@dataclass(frozen=True)
class Answer:
    """A class and the reason for it."""

    agreement: Agreement
    reason: str = ""


def diff_trees(a: Path, b: Path, progress: Callable[[int, int], None] | None = None) -> list[ArtifactComparison]:
    """Return how every artifact of two results trees compares, by folder.

    Files that belong to no step (logs, Snakemake's own report) and every step's run.json are outside every promise and
    not compared. Memory for one artifact's files at a time.

    Args:
        progress: is told how many folders are done, and how many there are.

    Raises:
        UserError: if a path holds no results, or the manifests say that steps depend on each other in a circle.
    """
    folders_a, folders_b = (_folders(root) for root in (a, b))
    only_a, only_b = folders_a - folders_b, folders_b - folders_a
    compared = {folder: _only_in(Agreement.only_in_a, a, b, folder, only_b) for folder in only_a}
    compared |= {folder: _only_in(Agreement.only_in_b, b, a, folder, only_a) for folder in only_b}
    pairs: dict[str, Pair] = {}
    common = sorted(folders_a & folders_b)
    for done, folder in enumerate(common):
        if progress:
            progress(done, len(common))
        try:
            pairs[folder] = read_pair(a, b, folder)
        except UserError as error:
            compared[folder] = ArtifactComparison(folder, "", Agreement.different, str(error))
    for folder, answer in _answers(pairs).items():
        pair = pairs[folder]
        reason = one_line(answer.reason)
        compared[folder] = ArtifactComparison(folder, pair.stage, answer.agreement, reason, pair.files, pair.largest)
    return [compared[folder] for folder in sorted(compared)]


def _folders(root: Path) -> set[str]:
    folders = set(step_folders(root)) if root.is_dir() else set()
    if not any(folder.startswith(f"{stage.folder}/") for folder in folders for stage in STAGES.values()):
        raise UserError(f"{root}: holds no results; name the folder that a run has written, e.g. results")
    return folders


def _only_in(agreement: Agreement, here: Path, there: Path, folder: str, others: set[str]) -> ArtifactComparison:
    """Return the comparison of a step with none; ``others`` are the folders that only the other tree has."""
    reason = f"{there} has no step of this spec"
    # A folder's name is its label and the digest of its spec.
    alike = [other for other in sorted(others) if other.rpartition("-")[0] == folder.rpartition("-")[0]]
    try:
        artifact = read_artifact(here / folder)
        stage = artifact.manifest.result.stage
        if len(alike) == 1:
            reason = f"spec differs from {alike[0]}: {spec_change(artifact, read_artifact(there / alike[0]))}"
    except UserError as error:
        return ArtifactComparison(folder, "", agreement, str(error))
    return ArtifactComparison(folder, stage, agreement, one_line(reason))


def _answers(pairs: Mapping[str, Pair]) -> dict[str, Answer]:
    """Return the class of every pair, parents first; what only seeds can tell is taken from the studies at the end."""
    answers: dict[str, Answer] = {}
    bounds: dict[str, str] = {}
    for folder in _parents_first(pairs):
        pair = pairs[folder]
        bounds[folder] = _bound(pair, pairs, bounds)
        if answer := _own_answer(pair, bounds[folder]) or _answer_below_students(pair, answers):
            answers[folder] = answer
    studies: dict[str, list[str]] = {}
    for study in sorted(folder for folder in answers if pairs[folder].stage == "evidence"):
        for folder in _all_above(study, pairs):
            studies.setdefault(folder, []).append(study)
    for folder in pairs.keys() - answers.keys():
        answers[folder] = _answer_of_studies(pairs[folder], studies.get(folder, []), answers)
    return answers


def _parents_first(pairs: Mapping[str, Pair]) -> list[str]:
    graph = {folder: _parents(pair, pairs) for folder, pair in sorted(pairs.items())}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise UserError(f"{error.args[1][0]}: its manifest says that it was made from itself") from None


def _parents(pair: Pair, pairs: Mapping[str, Pair]) -> list[str]:
    folders = {parent.folder for side in (pair.a, pair.b) for parent in side.manifest.result.parents.values()}
    return sorted(folders & pairs.keys())


def _all_above(folder: str, pairs: Mapping[str, Pair]) -> set[str]:
    found: set[str] = set()
    left = [folder]
    while left:
        new = set(_parents(pairs[left.pop()], pairs)) - found
        found |= new
        left += new
    return found


def _bound(pair: Pair, pairs: Mapping[str, Pair], bounds: Mapping[str, str]) -> str:
    """Return the kind of equality that a step can be held to: its own, or that of an input if weaker."""
    kinds = [pair.equality]
    for parent in _parents(pair, pairs):
        if not pairs[parent].identical:
            kinds.append("tolerance" if pairs[parent].within_tolerance else bounds[parent])
    return max(kinds, key=STRICTNESS.index)


def _own_answer(pair: Pair, bound: str) -> Answer | None:
    """Return the class that two artifacts have by themselves; None if only seeds can tell."""
    if pair.damage:
        return Answer(Agreement.different, "; ".join(pair.damage))
    if pair.spec_change:
        return Answer(Agreement.different, f"spec differs: {pair.spec_change}")
    if pair.identical:
        return Answer(Agreement.identical)
    if pair.within_tolerance and bound != "bitwise":
        return Answer(
            Agreement.tolerance,
            f"differs by rounding only ({pair.circumstances}); {STAGES[pair.stage].equality.reason}",
        )
    if bound != "statistical":
        return Answer(
            Agreement.different, f"differs by more than rounding ({pair.circumstances}), and no training explains it"
        )
    structural = next((file.structural for file in pair.files if file.structural), None)
    if structural and (STAGES[pair.stage].keyed or not structural.where):
        return Answer(Agreement.different, f"differs in what no training explains: {structural}")
    return None


def _answer_below_students(pair: Pair, answers: Mapping[str, Answer]) -> Answer | None:
    """Return the class of a study, of verdicts and of figures that more than rounding separates; None of others."""
    if pair.stage == "evidence":
        return _answer_of_seeds(pair)
    if pair.stage not in ("verdicts", "figures"):
        return None
    parents = {parent.folder for parent in pair.a.manifest.result.parents.values()}
    for folder in sorted(parents):
        if folder not in answers or not answers[folder].agreement.reproduces:
            return Answer(Agreement.different, f"made from {folder}, which is different")
    if pair.stage == "verdicts":
        return _answer_of_words(pair)
    return Answer(Agreement.statistical, f"drawn from {', '.join(sorted(parents))}, where the verdicts are the same")


def _answer_of_seeds(pair: Pair) -> Answer:
    from dmdpipe.artifacts.tables import decode_table
    from dmdpipe.audit.seed_tests import compare_seeds

    name = "results.parquet"
    try:
        a, b = (decode_table(side.read(name), str(side.path / name)) for side in (pair.a, pair.b))
    except UserError as error:
        return Answer(Agreement.different, str(error))
    test = compare_seeds(a, b)
    return Answer(Agreement.statistical if test.compatible else Agreement.different, test.reason)


def _answer_of_words(pair: Pair) -> Answer:
    try:
        words = [_verdicts(side) for side in (pair.a, pair.b)]
    except (UserError, ValueError, TypeError, KeyError, RecursionError) as error:
        return Answer(Agreement.different, f"verdicts.json cannot be read: {error}")
    for claim in sorted({*words[0], *words[1]}):
        a, b = (side.get(claim, "no verdict") for side in words)
        if a != b:
            return Answer(Agreement.different, f"claim {claim}: {a} → {b}")
    return Answer(Agreement.statistical, f"the verdicts on all {len(words[0])} claims are the same words")


def _verdicts(artifact: Artifact) -> dict[str, str]:
    records = json.loads(artifact.read("verdicts.json"))
    return {str(record["id"]): str(record["verdict"]) for record in records}


def _answer_of_studies(pair: Pair, studies: list[str], answers: Mapping[str, Answer]) -> Answer:
    """Return the class of a step that only its students' seeds can tell, from the studies that it is part of."""
    why = STAGES["student"].equality.reason
    if not studies:
        return Answer(Agreement.different, f"no study over several seeds contains it ({pair.circumstances}); {why}")
    for study in studies:
        if not answers[study].agreement.reproduces:
            return Answer(Agreement.different, f"part of {study}, which is different: {answers[study].reason}")
    return Answer(
        Agreement.statistical,
        f"part of {', '.join(studies)}, compatible over seeds ({pair.circumstances}); {why}",
    )
