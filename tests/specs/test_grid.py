"""Grids: axes multiplied, seeds put in, layers in their order, models exchanged as a whole."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import members, only, scale, study

from dmdpipe.errors import UserError
from dmdpipe.specs.base import canonical_json
from dmdpipe.specs.data import Digits, Fashion, Gaussian, Moons, data_name
from dmdpipe.specs.diffusion import ExactScore, TrainedScore
from dmdpipe.specs.grid import lay_over, lay_under
from dmdpipe.specs.network import MLP, Linear, UNet
from dmdpipe.specs.student import Init
from dmdpipe.specs.study import Scale, Study

SIDES = {"4": {"data.side": 2}, "16": {"data.side": 4}}
STARTS = {"same": {"student.init.kind": "teacher"}, "fresh": {"student.init.kind": "random-head"}}
LINEAR = {
    "data.family": "gaussian",
    "score.kind": "exact",
    "student.network.kind": "linear",
    "student.recipe.fake": "oracle",
}


@given(sizes=st.lists(st.integers(1, 3), max_size=3), seeds=st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_the_grid_is_the_product_of_axes_and_seeds(sizes: list[int], seeds: int) -> None:
    axes = {f"a{i}": {f"l{j}": {} for j in range(size)} for i, size in enumerate(sizes)}
    found = members(study(axes=axes), scale(seeds))
    product = 1
    for size in sizes:
        product *= size
    assert len(found) == product * seeds
    assert len({(member.point, member.seed) for member in found}) == len(found)
    assert {member.seed for member in found} == set(range(seeds))


def test_points_come_in_the_order_of_the_axes_with_seeds_innermost() -> None:
    found = members(study(axes={"d": SIDES, "start": STARTS}), scale(2))
    assert [(member.point, member.seed) for member in found] == [
        (f"d={d}, start={start}", seed) for d in SIDES for start in STARTS for seed in (0, 1)
    ]
    specs = [member.spec.pairs.student for member in found]
    assert [(spec.teacher.data.side, spec.init.kind) for spec in specs[::2]] == [
        (2, "teacher"),
        (2, "random-head"),
        (4, "teacher"),
        (4, "random-head"),
    ]


def test_without_axes_there_is_one_point() -> None:
    assert [member.point for member in members(study())] == ["all"]


def test_a_scale_can_keep_some_labels_of_an_axis_in_its_own_order_and_all_of_another() -> None:
    declared = study(axes={"d": SIDES, "start": STARTS}, scales={"tiny": {"axes": {"d": ["16"]}}})
    assert [member.point for member in members(declared)] == ["d=16, start=same", "d=16, start=fresh"]
    assert len(members(declared, scale_name="other")) == 4


def test_seed_and_labels_reach_teacher_and_student_but_not_the_bank() -> None:
    for member in members(study(axes={"d": SIDES}), scale(3)):
        pairs = member.spec.pairs
        assert pairs.student.seed == pairs.student.teacher.score.seed == member.seed
        assert pairs.teacher_samples.teacher == pairs.student.teacher
        assert pairs.teacher_samples.bank.seed == 0
        labels = member.labels()
        assert labels["seed"] == member.seed and labels["point"] == member.point
        assert labels["d"] == pairs.teacher_samples.bank.dim == pairs.student.teacher.data.side**2
        assert labels["data"] == data_name(pairs.student.teacher.data)
        assert (labels["init"], labels["recipe"], labels["sigma_max"]) == ("teacher", "dmd2", 80.0)
        assert labels["network"] == "mlp-64x3"


def test_the_overlay_of_a_scale_can_set_the_number_of_seeds() -> None:
    declared = study(scales={"tiny": {"seeds": 4}})
    assert len(members(declared, scale(2))) == 4
    assert len(members(declared, scale(2), "other")) == 2


def test_points_can_have_numbers_of_seeds_by_their_labels() -> None:
    """Others keep the study's number, else the scale's; the largest that applies wins; the first seed is common."""
    axes = {"d": SIDES, "start": STARTS}

    def seeds_of(points: list[Any]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for member in points:
            found.setdefault(member.point, []).append(member.seed)
        return found

    declared = study(axes=axes, scales={"tiny": {"seeds_at": {"d": {"4": 3}, "start": {"fresh": 4}}}})
    assert seeds_of(members(declared, scale(2, first_seed=5))) == {
        "d=4, start=same": [5, 6, 7],
        "d=4, start=fresh": [5, 6, 7, 8],
        "d=16, start=same": [5, 6],
        "d=16, start=fresh": [5, 6, 7, 8],
    }
    assert set(map(len, seeds_of(members(declared, scale(2), "other")).values())) == {2}
    fewer = study(axes={"d": SIDES}, scales={"tiny": {"seeds": 5, "seeds_at": {"d": {"4": 1}}}})
    assert seeds_of(members(fewer, scale(2))) == {"d=4": [0], "d=16": [0, 1, 2, 3, 4]}


def test_a_scale_can_have_more_seeds_for_students_that_train_together() -> None:
    """Not for those that train alone, whatever the scale asks for, and not where the study has a number of its own."""
    axes = {"start": {"own": {}, "other": {"student.init": {"kind": "other-teacher", "source": {"seed_offset": 1}}}}}
    budgets = {"title": "t", "seeds": 2, "seeds_together": 6, "first_seed": 5, "set": {"student.together": True}}

    ensembles: dict[str, Any] = {}

    def seeds_of(declared: Study, **changes: Any) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for member in members(declared, Scale.model_validate(budgets | changes)):
            found.setdefault(member.point, []).append(member.seed)
            ensembles[member.point] = member.spec.pairs.student.members
        return found

    assert seeds_of(study(axes=axes)) == {"start=own": [5, 6, 7, 8, 9, 10], "start=other": [5, 6]}
    assert ensembles["start=own"].seeds == (5, 6, 7, 8, 9, 10) and ensembles["start=other"] is None
    assert seeds_of(study(axes=axes), set={}) == {"start=own": [5, 6], "start=other": [5, 6]}
    own = study(axes=axes, scales={"tiny": {"seeds": 3, "seeds_at": {"start": {"other": 4}}}})
    assert seeds_of(own) == {"start=own": [5, 6, 7], "start=other": [5, 6, 7, 8]}


def test_seeds_count_up_from_the_first_seed_of_the_scale_in_every_study() -> None:
    declared = study(axes={"d": SIDES}, scales={"tiny": {"seeds": 4}})
    found = members(declared, scale(2, first_seed=5))
    assert [member.seed for member in found] == [5, 6, 7, 8] * 2
    assert [member.spec.pairs.student.seed for member in found] == [5, 6, 7, 8] * 2
    assert [member.seed for member in members(declared, scale(2, first_seed=5), "other")] == [5, 6] * 2


# Layers

KEY = "student.generator_steps"


@pytest.mark.parametrize("given_layers", [given for n in range(5) for given in permutations(range(1, 5), n)])
def test_later_layers_win(given_layers: tuple[int, ...]) -> None:
    def said(layer: int) -> dict[str, Any]:
        return {KEY: layer * 10} if layer in given_layers else {}

    declared = study(
        {"data.family": "digits", **said(2)}, axes={"a": {"x": said(3)}}, scales={"tiny": {"set": said(4)}}
    )
    found = only(declared, scale(**{key.replace(".", "__"): value for key, value in said(1).items()}))
    assert found.pairs.student.generator_steps == (max(given_layers) * 10 if given_layers else 1_000)


def test_the_later_of_two_axes_wins() -> None:
    declared = study(axes={"a": {"x": {KEY: 10}}, "b": {"y": {KEY: 20}}})
    assert only(declared).pairs.student.generator_steps == 20


def test_network_and_noise_range_are_common_to_teacher_and_student() -> None:
    spec = only(study({"data.family": "digits", "score.network.width": 8, "noise_range.sigma_max": 5}))
    assert spec.pairs.student.network == spec.pairs.student.teacher.score.network == MLP(width=8)
    assert spec.pairs.student.noise_range == spec.pairs.teacher_samples.noise_range
    assert spec.pairs.student.noise_range.sigma_max == 5.0


def test_settings_of_the_metrics_arrive() -> None:
    spec = only(study({"data.family": "digits", "metrics.projections": 7, "metrics.whitened_variance": 0.5}))
    assert (spec.projections, spec.whitened_variance) == (7, 0.5)


# Models exchanged as a whole


def test_a_scale_leaves_exact_teachers_and_linear_students_alone() -> None:
    budgets = scale(score__steps=7, score__batch=9, student__network__width=8, data__n_train=50, data__side=2)
    student = only(study(LINEAR), budgets).pairs.student
    assert student.teacher.score == ExactScore()
    assert student.network == Linear()
    assert student.teacher.data == Gaussian(n_train=50)


def test_a_scale_that_sets_the_networks_of_teachers_leaves_exact_ones_alone() -> None:
    wide = scale(score__network__width=8, score__device="cuda", student__snapshots=7)
    exact = only(study(LINEAR), wide).pairs.student
    assert (exact.teacher.score, exact.network, exact.snapshots) == (ExactScore(), Linear(), 7)
    trained = only(study(), wide).pairs.student
    assert trained.network == trained.teacher.score.network == MLP(width=8)
    assert (trained.teacher.score.device, trained.device) == ("cuda", "cpu")


def test_a_scale_reaches_trained_teachers_also_where_the_kind_is_left_to_its_default() -> None:
    for base in ({"data.family": "digits"}, {"data.family": "digits", "score.kind": "trained"}):
        student = only(study(base), scale(score__steps=7, data__side=4)).pairs.student
        assert student.teacher.score == TrainedScore(steps=7)
        assert student.teacher.data == Digits(side=4)


def test_a_scale_reaches_unets_and_mlps_by_their_own_keys_alone() -> None:
    both = scale(score__network__width=8, score__network__channels=16, score__network__blocks=1)
    images = {"data.family": "digits"}
    assert only(study(images), both).pairs.student.network == MLP(width=8)
    unet = only(study({**images, "score.network.kind": "unet", "score.network.blocks": 3}), both).pairs.student
    assert unet.network == unet.teacher.score.network == UNet(channels=16, blocks=3)


def test_a_key_of_a_scale_that_no_model_knows_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown key 'score\.step' \(did you mean 'steps'\?\)"):
        members(study(), scale(score__step=7))


@pytest.mark.parametrize("given", [{"score__seed": 7}, {"score": {"seed": 7}}], ids=str)
def test_a_scale_cannot_give_all_students_one_teacher_behind_the_back_of_its_studies(given: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"^config/scales/tiny\.yaml: set\.score.*: a scale cannot set the teacher's seed"
    ):
        members(study(), scale(**given))


def test_another_family_drops_the_keys_of_the_old_one() -> None:
    base = {"data.family": "digits", "data.side": 4, "data.n_train": 9}
    labels = {"old": {}, "new": {"data.family": "moons"}, "same": {"data.family": "digits"}}
    declared = study(base, axes={"data": labels})
    found = [member.spec.pairs.student.teacher.data for member in members(declared)]
    assert found == [Digits(side=4, n_train=9), Moons(), Digits(side=4, n_train=9)]


def test_another_score_drops_the_keys_of_the_old_one() -> None:
    base = {"data.family": "ring", "score.kind": "trained", "score.steps": 9, "student.network.kind": "mlp"}
    axes = {"score": {"exact": {"score.kind": "exact", "student.init.kind": "random-head"}}}
    with pytest.raises(UserError, match="recipe.fake 'learned'"):  # reached only with a valid exact score
        members(study(base, axes=axes))


def test_another_score_drops_the_keys_of_the_default_one() -> None:
    axes = {"score": {"exact": {key: value for key, value in LINEAR.items() if key != "data.family"}}}
    declared = study({"data.family": "gaussian", "score.steps": 9}, axes=axes)
    assert only(declared).pairs.student.teacher.score == ExactScore()


@pytest.mark.parametrize("order", list(permutations(["data.family", "data.side", "data.n_train"])))
def test_the_order_of_keys_within_a_layer_does_not_count(order: tuple[str, ...]) -> None:
    layer = {"data.family": "digits", "data.side": 4, "data.n_train": 9}
    declared = study({"data.family": "fashion"}, axes={"data": {"x": {key: layer[key] for key in order}}})
    assert only(declared).pairs.student.teacher.data == Digits(side=4, n_train=9)


def test_a_mapping_as_a_value_replaces_what_was_there() -> None:
    base = {"data": {"family": "fashion", "side": 20}, "student.recipe": {"name": "fastgen"}}
    label = {"data": {"family": "digits"}, "student.recipe.ema": 0.5}
    student = only(study(base, axes={"a": {"x": label}})).pairs.student
    assert student.teacher.data == Digits()
    assert (student.recipe.name, student.recipe.ema, student.recipe.dm_first) == ("fastgen", 0.5, 2)
    assert only(study({"data": {"family": "fashion"}})).pairs.student.teacher.data == Fashion()


def test_members_do_not_share_what_they_are_made_from() -> None:
    shared = {"family": "digits"}
    declared = study({"data": shared}, axes={"d": SIDES})
    assert [member.spec.pairs.student.teacher.data.side for member in members(declared)] == [2, 4]
    assert shared == {"family": "digits"}
    assert declared.base == {"data": {"family": "digits"}}


def test_a_recipe_given_by_its_name_alone_goes_together_with_a_scale_that_sets_a_part_of_it() -> None:
    declared = study({"data.family": "digits", "student.recipe": "regression"})
    recipe = only(declared, scale(student__recipe__regression_pairs=12)).pairs.student.recipe
    assert (recipe.name, recipe.regression_pairs) == ("regression", 12)


words = st.text("abc", min_size=1, max_size=2)
dotted = st.lists(words, min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(dotted, st.integers(), max_size=5), st.dictionaries(dotted, st.integers(), max_size=5))
@settings(deadline=None)
def test_what_lies_under_never_changes_what_lies_over(over: dict[str, int], under: dict[str, int]) -> None:
    tree: dict[str, Any] = {}
    try:
        lay_over(tree, over, "over")
        lay_under(tree, under, "under")
    except UserError as refused:
        assert "is a value, so nothing can stand below it" in str(refused)
        return

    def at(key: str) -> Any:
        branch: Any = tree
        for word in key.split("."):
            branch = branch[word]
        return branch

    top = {key for key in over if not any(other.startswith(f"{key}.") or key.startswith(f"{other}.") for other in over)}
    assert all(at(key) == over[key] for key in top)


NO_GRIDS: list[tuple[dict[str, Any], list[str]]] = [
    ({"base": {"data.family": "digit"}}, ["data", "'digit'", "'digits'"]),
    ({"base": {"data.family": ["digits"]}}, ["data", "digits"]),
    ({"base": {"data.family": {"digits": 1}}}, ["data", "digits"]),
    ({"base": {}}, ["data", "required"]),
    ({"base": {"data": None}}, ["data"]),
    ({"base": {"data": 5, "data.side": 2}}, ["data.side", "is a value"]),
    ({"base": {"data.family": "digits", "data.sied": 2}}, ["data.sied", "did you mean 'side'?"]),
    ({"base": {"data.family": "digits", "student.recipe.name": ["dmd2"]}}, ["student.recipe"]),
    ({"base": {"data.family": "digits", "score": None}}, ["score"]),
    ({"base": {"data.family": "digits", "bank.n_held_out": 10}}, ["bank", "n_held_out", "10", "128"]),
    ({"base": {"data.family": "moons", "score.kind": "exact"}}, ["score.kind", "exact", "moons"]),
    ({"base": {"data.family": "gaussian", "score.kind": "exact"}}, ["student.network", "exact teacher"]),
    ({"axes": {"d": {"4": {"data.side": 3}}}}, ["data.side", "d=4", "3"]),
    ({"axes": {"d": {"4": {"date.side": 2}}}}, ["date", "did you mean 'data'?"]),
    ({"axes": {"d": {}}}, ["axes.d"]),
    ({"axes": {"d": SIDES}, "scales": {"tiny": {"axes": {"d": []}}}}, ["scales.tiny.axes.d"]),
    ({"axes": {"d": SIDES}, "scales": {"tiny": {"axes": {"d": ["4", "4"]}}}}, ["scales.tiny.axes.d", "4"]),
    (
        {"axes": {"start": SIDES}, "scales": {"tiny": {"axes": {"strat": ["4"]}}}},
        ["strat", "did you mean 'start'?"],
    ),
    (
        {"axes": {"start": STARTS}, "scales": {"tiny": {"axes": {"start": ["frsh"]}}}},
        ["scales.tiny.axes.start", "frsh", "did you mean 'fresh'?"],
    ),
    (
        {"axes": {"start": SIDES}, "scales": {"tiny": {"seeds_at": {"strat": {"4": 3}}}}},
        ["scales.tiny.seeds_at", "strat", "did you mean 'start'?"],
    ),
    (
        {"axes": {"start": STARTS}, "scales": {"tiny": {"seeds_at": {"start": {"frsh": 3}}}}},
        ["scales.tiny.seeds_at.start", "frsh", "did you mean 'fresh'?"],
    ),
    (
        {"axes": {"d": SIDES}, "scales": {"tiny": {"axes": {"d": ["4"]}, "seeds_at": {"d": {"16": 3}}}}},
        ["scales.tiny.seeds_at.d", "unknown label '16'"],
    ),
    ({"scales": {"tiny": {"set": {"student.seeds": 3}}}}, ["student.seeds"]),
]


@pytest.mark.parametrize(
    ("parts", "words_of_message"), NO_GRIDS, ids=[str(parts).replace("'", "") for parts, _ in NO_GRIDS]
)
def test_what_makes_no_grid_is_refused_in_one_line(parts: dict[str, Any], words_of_message: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        members(study(**parts), scale(data__n_train=100))
    message = str(refused.value)
    assert message.startswith("config/studies/mine.yaml") and "\n" not in message
    assert all(word in message for word in words_of_message), message


@pytest.mark.parametrize(
    "axes", [{}, {f"a{i}": {str(j): {} for j in range(50)} for i in range(8)}], ids=["seeds", "axes"]
)
def test_a_grid_beyond_all_measure_is_refused_before_it_is_made(axes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="more than 10000 students"):
        members(study(axes=axes), scale(4001 if axes else 10**15))


@pytest.mark.parametrize(
    ("init", "usual"),
    [
        ({"kind": "interpolated", "alpha": 1}, "teacher"),
        ({"kind": "interpolated", "alpha": 0}, "random-head"),
        ({"kind": "partial"}, "teacher"),
        ({"kind": "partial", "fresh_first": 2, "fresh_last": 3}, "random-head"),
    ],
)
def test_a_start_that_is_all_the_teachers_or_all_random_is_the_usual_student(init: dict[str, Any], usual: str) -> None:
    found = [only(study({"data.family": "digits", "student.init": given})) for given in (init, {"kind": usual})]
    assert found[0] == found[1]


def test_keys_that_came_later_leave_older_specs_as_they_were() -> None:
    assert canonical_json(Init()) == '{"kind":"teacher","regression_steps":2000}'
    assert canonical_json(Init(kind="partial", fresh_last=1)) == (
        '{"fresh_last":1,"kind":"partial","regression_steps":2000}'
    )


def test_a_seed_of_the_teacher_is_one_teacher_for_all_students_and_other_students_have_their_own() -> None:
    axes = {"teacher": {"own": {}, "4": {"score.seed": 4}, "0": {"score.seed": 0}}}
    found = [member.spec.pairs.student for member in members(study(axes=axes), scale(seeds=3, first_seed=3))]
    assert [student.seed for student in found] == 3 * [3, 4, 5]
    assert [student.teacher.score.seed for student in found] == [3, 4, 5, 4, 4, 4, 0, 0, 0]
    assert found[1] == found[4]
