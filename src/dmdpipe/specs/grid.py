"""From a study and a scale to its cells: overrides are laid over each other, axes multiplied, seeds put in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.base import Spec
from dmdpipe.specs.data import FAMILIES, data_name, dimension
from dmdpipe.specs.diffusion import ExactScore, NoiseBankSpec, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP, Linear, Particles, UNet, network_name
from dmdpipe.specs.pairs import MapsSpec, MetricsSpec, PairsSpec
from dmdpipe.specs.problems import parse
from dmdpipe.specs.student import Init, InitSettings, Members, StudentSpec, obstacle_to_members
from dmdpipe.specs.study import Cell, Scale, ScaleOverlay, Study


@dataclass(frozen=True)
class Choice:
    """A place where one key chooses between models: the key, the models, and which it is if the key is absent."""

    key: str
    models: Mapping[Any, type[Spec]]
    default: str | None


CHOICES = {
    "data": Choice("family", FAMILIES, None),
    "score": Choice("kind", {"trained": TrainedScore, "exact": ExactScore}, "trained"),
    "score.network": Choice("kind", {"mlp": MLP, "unet": UNet}, "mlp"),
    "student.network": Choice("kind", {"mlp": MLP, "unet": UNet, "linear": Linear, "particles": Particles}, "mlp"),
}
# Places where a name alone may stand for a mapping, and the key that it is short for.
SHORT_FOR = {"student.recipe": "name", "student.init": "kind"}
LARGEST_STUDY = 10_000  # students at one scale: above, making the plan alone would take minutes


@dataclass(frozen=True)
class Member:
    """One cell of a study's grid with one seed.

    ``point`` names the cell by its axes, e.g. ``d=16, start=teacher``; ``spec`` is the spec of its last step, the
    metrics, in which those of all earlier steps are nested; ``maps`` that of its distances to named maps, if the study
    asks for them.
    """

    point: str
    seed: int
    spec: MetricsSpec
    maps: MapsSpec | None = None

    def labels(self) -> dict[str, Any]:
        """Return the columns by which a results table tells cells apart."""
        student = self.spec.pairs.student
        return {
            "point": self.point,
            "data": data_name(student.teacher.data),
            "d": dimension(student.teacher.data),
            "network": network_name(student.network),
            "init": student.init.kind,
            "recipe": student.recipe.name,
            "sigma_max": student.noise_range.sigma_max,
            "seed": self.seed,
        }


def expand(name: str, study: Study, scale_name: str, scale: Scale) -> list[Member]:
    """Return all members of a study at a scale, in the order of its axes, seeds innermost.

    Later layers win: the models' defaults, the scale, the study's base, the axes, the study at that scale. The n
    seeds of a point count up from the scale's ``first_seed``, in every study: points that studies share share seeds.
    n is the largest that ``seeds_at`` has for a label of the point, else the overlay's ``seeds``, else the scale's:
    ``seeds_together`` where it is given and the point's students train as one ensemble, or ``seeds``.

    Raises:
        UserError: naming the file and the key, if anything is unknown, of the wrong type or impossible.
    """
    overlay = study.scales.get(scale_name, ScaleOverlay())
    source = f"config/studies/{name}.yaml"
    for axis in overlay.axes:
        if axis not in study.axes:
            raise UserError(
                f"{source}: scales.{scale_name}.axes: unknown axis '{axis}'{did_you_mean(axis, study.axes)}"
            )
    _check_seeds_at(f"{source}: scales.{scale_name}.seeds_at", study, overlay)
    check_budgets(scale_name, scale)
    members: list[Member] = []
    for labels, choices in _points(source, study, overlay, scale_name):
        tree: dict[str, Any] = {}
        for layer in (study.base, *choices, overlay.set):
            lay_over(tree, layer, source)
        if isinstance(tree.get("data", {}), dict) and isinstance(tree.get("score", {}), dict):
            lay_under(tree, scale.set, f"config/scales/{scale_name}.yaml")
        name_defaults(tree)
        point = ", ".join(f"{axis}={label}" for axis, label in labels.items()) or "all"
        where = f"{source} ({point}, scale {scale_name})"
        cell = parse(Cell, tree, where)
        own = [numbers[labels[axis]] for axis, numbers in overlay.seeds_at.items() if labels[axis] in numbers]
        of_scale = scale.seeds
        if scale.seeds_together and resolve(cell, scale.first_seed, where).pairs.student.members:
            of_scale = scale.seeds_together
        last = scale.first_seed + max(own, default=overlay.seeds or of_scale)
        if len(members) + last - scale.first_seed > LARGEST_STUDY:
            raise UserError(f"{source}: at scale {scale_name} it has more than {LARGEST_STUDY} students; take fewer")
        seeds = range(scale.first_seed, last)
        for seed in seeds:
            spec = resolve(cell, seed, where, seeds)
            maps = parse(MapsSpec, {"pairs": spec.pairs, **cell.maps.model_dump()}, where) if cell.maps else None
            members.append(Member(point, seed, spec, maps))
    return members


def _check_seeds_at(place: str, study: Study, overlay: ScaleOverlay) -> None:
    for axis, numbers in overlay.seeds_at.items():
        if axis not in study.axes:
            raise UserError(f"{place}: unknown axis '{axis}'{did_you_mean(axis, study.axes)}")
        # A label that the scale leaves out has no points, so its number of seeds would be of no effect.
        kept = overlay.axes.get(axis, list(study.axes[axis]))
        for label in numbers:
            if label not in kept:
                raise UserError(f"{place}.{axis}: unknown label '{label}'{did_you_mean(label, kept)}")


def check_budgets(scale_name: str, scale: Scale) -> None:
    """Check that a scale's keys exist and its values are possible for every family, score and network that has them.

    The teacher's seed is what an interval over seeds is about, so no scale sets it.

    Raises:
        UserError: naming the scale's file and the key.
    """
    source = f"config/scales/{scale_name}.yaml"
    for dotted, value in scale.set.items():
        choice = CHOICES.get(dotted.rpartition(".")[0])
        last = dotted.rpartition(".")[2]
        tags = [tag for tag, model in choice.models.items() if last in model.model_fields] if choice else []
        tree: dict[str, Any] = {"data": {"family": "digits"}}
        if choice and tags:
            lay_over(tree, {f"{dotted.rpartition('.')[0]}.{choice.key}": tags[0]}, source)
        lay_over(tree, {dotted: value}, source)
        if "seed" in (_at(tree, "score") or {}):
            raise UserError(
                f"{source}: set.{dotted}: a scale cannot set the teacher's seed: all students would have one teacher,"
                " and no table would show it; set score.seed in a study, at points that say so"
            )
        name_defaults(tree)
        parse(Cell, tree, source)


def _points(
    source: str, study: Study, overlay: ScaleOverlay, scale_name: str
) -> Iterator[tuple[dict[str, str], list[Mapping[str, Any]]]]:
    kept = {}
    for axis, values in study.axes.items():
        kept[axis] = overlay.axes.get(axis, list(values))
        if not values:
            raise UserError(f"{source}: axes.{axis}: has no labels; name at least one")
        if not kept[axis] or len(set(kept[axis])) < len(kept[axis]):
            place = f"{source}: scales.{scale_name}.axes.{axis}"
            raise UserError(f"{place}: {kept[axis]} must name at least one label, and each once")
        for label in kept[axis]:
            if label not in values:
                place = f"{source}: scales.{scale_name}.axes.{axis}"
                raise UserError(f"{place}: unknown label '{label}'{did_you_mean(label, values)}")
    for labels in product(*kept.values()):
        chosen = dict(zip(kept, labels, strict=True))
        yield chosen, [study.axes[axis][label] for axis, label in chosen.items()]


def lay_over(tree: dict[str, Any], overrides: Mapping[str, Any], source: str) -> None:
    """Set dotted keys in a nested mapping, in place. Another data family, score or network drops the old one's keys.

    Raises:
        UserError: if a key runs through something that is not a mapping.
    """
    # The choosing keys first: what they drop must not depend on the order within a layer.
    for dotted, value in sorted(overrides.items(), key=lambda item: _choice_of(item[0]) is None):
        branch, last = _branch(tree, dotted, source)
        if choice := _choice_of(dotted):
            before = branch.get(last, choice.default)
            if before is not None and before != value:
                branch.clear()
        if dotted in SHORT_FOR and isinstance(value, str):
            value = {SHORT_FOR[dotted]: value}
        branch[last] = dict(value) if isinstance(value, dict) else value


def lay_under(tree: dict[str, Any], defaults: Mapping[str, Any], source: str) -> None:
    """Set those dotted keys of a scale that are not set yet and that concern the chosen family, score and network.

    A scale says, for instance, how long teachers train; an exact teacher has no such key and is left alone.

    Raises:
        UserError: if a key runs through something that is not a mapping.
    """
    for dotted, value in defaults.items():
        if _concerns(tree, dotted):
            branch, last = _branch(tree, dotted, source)
            branch.setdefault(last, value)


def _concerns(tree: dict[str, Any], dotted: str) -> bool:
    """Whether no model chosen on the key's way lacks what another one there has."""
    for place, choice in CHOICES.items():
        if not dotted.startswith(f"{place}."):
            continue
        key = dotted.removeprefix(f"{place}.").partition(".")[0]
        chosen = (_at(tree, place) or {}).get(choice.key, choice.default)
        model = choice.models.get(chosen) if isinstance(chosen, str) else None
        known_to_others = any(key in other.model_fields for other in choice.models.values())
        if model and key not in model.model_fields and known_to_others:
            return False
    return True


def _at(tree: dict[str, Any], place: str) -> dict[str, Any] | None:
    branch: Any = tree
    for key in place.split("."):
        branch = branch.get(key) if isinstance(branch, dict) else None
    return branch if isinstance(branch, dict) else None


def name_defaults(tree: dict[str, Any]) -> None:
    """Name the default model wherever keys of a choice are set but not which model they belong to, in place."""
    for place, choice in CHOICES.items():
        if (branch := _at(tree, place)) and choice.default:
            branch.setdefault(choice.key, choice.default)


def _choice_of(dotted: str) -> Choice | None:
    place, _, last = dotted.rpartition(".")
    choice = CHOICES.get(place)
    return choice if choice and choice.key == last else None


def _branch(tree: dict[str, Any], dotted: str, source: str) -> tuple[dict[str, Any], str]:
    *parents, last = dotted.split(".")
    branch = tree
    for key in parents:
        branch = branch.setdefault(key, {})
        if not isinstance(branch, dict):
            raise UserError(f"{source}: key '{dotted}': '{key}' is a value, so nothing can stand below it")
    return branch, last


def resolve(cell: Cell, seed: int, where: str, seeds: Sequence[int] = ()) -> MetricsSpec:
    """Return the full spec of one member: teacher and student both take ``seed``; the noise bank is common to all.

    A cell that names the teacher's seed has one teacher for all its students. One whose students train ``together``
    names the ``seeds`` of all of them in the spec of each.

    Raises:
        UserError: if the parts do not fit together, e.g. an exact score of data whose score is not known.
    """
    score = cell.score
    one_teacher = "seed" in score.model_fields_set
    if score.kind == "trained" and not one_teacher:
        score = score.model_copy(update={"seed": seed})
    teacher = parse(TeacherSpec, {"data": cell.data, "score": score}, where)
    settings = {name: getattr(cell.student, name) for name in type(cell.student).model_fields if name != "together"}
    if settings["network"] is None:
        settings["network"] = cell.score.network if cell.score.kind == "trained" else settings["network"]
    if settings["network"] is None:
        raise UserError(f"{where}: student.network: an exact teacher has no network to copy; name one")
    start = start_of(cell, teacher, where)
    settings["init"] = init_of(cell.student.init, settings["network"], start)
    bank = parse(NoiseBankSpec, {"dim": dimension(cell.data), **cell.bank.model_dump()}, f"{where}: bank")
    own: dict[str, Any] = {"teacher": teacher, "start": start, "noise_range": cell.noise_range, "seed": seed}
    if settings["network"].kind == "particles":
        own["bank"] = bank
    student = parse(StudentSpec, {**settings, **own}, where)
    if cell.student.together and not obstacle_to_members(student):
        members = Members(seeds=tuple(seeds) or (seed,), one_teacher=one_teacher)
        student = student.model_copy(update={"members": members})
    samples = TeacherSamplesSpec(teacher=teacher, bank=bank, noise_range=cell.noise_range, sampler=cell.sampler)
    return MetricsSpec(pairs=PairsSpec(student=student, teacher_samples=samples), **cell.metrics.model_dump())


def init_of(given: InitSettings, network: MLP | UNet | Linear | Particles, start: TeacherSpec | None) -> Init:
    """Return the start, by its usual name where it is all the teacher's or all random: equal students are one step."""
    teacher = random = False
    match given.kind:
        case "other-teacher":
            teacher = start is None
        case "partial":
            fresh = given.fresh_first + given.fresh_last
            teacher, random = fresh == 0, network.kind == "mlp" and fresh == network.depth + 2
        case "interpolated":
            teacher, random = given.alpha == 1, given.alpha == 0
    if teacher or random:
        return Init(kind="teacher" if teacher else "random-head", regression_steps=given.regression_steps)
    return Init(**given.model_dump(exclude={"source"}))


def start_of(cell: Cell, teacher: TeacherSpec, where: str) -> TeacherSpec | None:
    """Return the other teacher that a student starts with, or None if that is its own: equal students are one step.

    Raises:
        UserError: if the data have no halves, or the teacher was not trained.
    """
    source = cell.student.init.source
    if source is None:
        return None
    place = f"{where}: student.init.source"
    score, data = teacher.score, source.data or teacher.data
    if score.kind != "trained":
        raise UserError(f"{place}: an exact teacher has no steps, seed or data to change; use score.kind 'trained'")
    if source.half and "half" not in type(data).model_fields:
        raise UserError(
            f"{place}.half: data of the family '{data.family}' have no halves; digits, fashion and own_images have"
        )
    other = score.model_copy(update={"steps": source.steps or score.steps, "seed": score.seed + source.seed_offset})
    start = TeacherSpec(data=data.model_copy(update={"half": source.half}) if source.half else data, score=other)
    return None if start == teacher else start
