"""Recipes: a published preset, of which any part can be replaced and the rest stays."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmdpipe.errors import UserError
from dmdpipe.specs.problems import parse
from dmdpipe.specs.student import PRESETS, Recipe, merged

NAMES = ("dmd2", "fastgen", "dmd2-gan", "fastgen-gan", "gan", "regression")

# The published recipes, as far as they are about the loop (arXiv 2405.14867, EDM branch; NVlabs/FastGen).
PUBLISHED: dict[str, dict[str, Any]] = {
    "dmd2": {
        "dm_weight": 1.0,
        "regression_weight": 0.0,
        "generator_every": 5,
        "fake_trains_with_generator": True,
        "normalise": True,
        "normaliser_offset": 0.0,
        "grid_size": 1000,
        "dm_first": 20,
        "dm_last": 980,
        "fake_first": 0,
        "fake_last": 999,
        "fake_weighting": "edm",
        "ema": None,
        "generator.kind": "adamw",
        "generator.beta1": 0.9,
        "generator.beta2": 0.999,
        "generator.weight_decay": 0.01,
        "generator.warmup": 500,
        "generator.clip": 10.0,
        "fake_score.beta1": 0.9,
        "fake_score.beta2": 0.999,
        "fake_score.weight_decay": 0.01,
        "fake_score.warmup": 500,
        "fake_score.clip": 10.0,
    },
    "fastgen": {
        "dm_weight": 1.0,
        "regression_weight": 0.0,
        "generator_every": 5,
        "fake_trains_with_generator": False,
        "normaliser_offset": 1e-6,
        "dm_first": 2,
        "dm_last": 998,
        "fake_first": 2,
        "fake_last": 998,
        "fake_weighting": "none",
        "generator.warmup": 0,
        "fake_score.warmup": 0,
    },
    "regression": {"dm_weight": 0.0, "regression_weight": 1.0, "generator_every": 1},
}
# Weights and noise levels of DMD2's EDM branch (experiments/imagenet); FastGen's own loss has no weight, and the one of
# its generator differs from experiment to experiment.
ADVERSARIAL = {"adversarial_weight": 3e-3}
OF_DMD2 = {"discriminator": "fake", "discriminator_weight": 1e-2, "adversarial_first": 0, "adversarial_last": 999}
OF_FASTGEN = {"discriminator": "teacher", "discriminator_weight": 1.0, "adversarial_first": 2, "adversarial_last": 998}
PUBLISHED["dmd2-gan"] = PUBLISHED["dmd2"] | ADVERSARIAL | OF_DMD2
PUBLISHED["fastgen-gan"] = PUBLISHED["fastgen"] | ADVERSARIAL | OF_FASTGEN
PUBLISHED["gan"] = PUBLISHED["dmd2-gan"] | {"dm_weight": 0.0}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every value of a nested mapping, by dotted key."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{path}.{key}".strip("."))
    return found


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        branch = tree
        for key in parents:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return tree


# For every field another valid value than any preset has.
OTHERS: dict[str, Any] = {
    "dm_weight": 0.25,
    "regression_weight": 0.5,
    "adversarial_weight": 0.5,
    "discriminator_weight": 0.5,
    "discriminator": "teacher",
    "adversarial_first": 4,
    "adversarial_last": 990,
    "regression_pairs": 77,
    "generator_every": 3,
    "normalise": False,
    "normaliser_offset": 0.125,
    "normaliser_min": 0.25,
    "grid_size": 1001,
    "dm_first": 30,
    "dm_last": 970,
    "fake_first": 4,
    "fake_last": 990,
    "fake": "oracle",
    "ema": 0.5,
    **{f"{role}.kind": "sgd" for role in ("generator", "fake_score")},
    **{f"{role}.learning_rate": 0.5 for role in ("generator", "fake_score")},
    **{f"{role}.weight_decay": 0.5 for role in ("generator", "fake_score")},
    **{f"{role}.beta1": 0.5 for role in ("generator", "fake_score")},
    **{f"{role}.beta2": 0.5 for role in ("generator", "fake_score")},
    **{f"{role}.warmup": 7 for role in ("generator", "fake_score")},
    **{f"{role}.clip": None for role in ("generator", "fake_score")},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_what_was_published(name: str) -> None:
    found = leaves(Recipe(name=name).model_dump())
    assert {key: found[key] for key in PUBLISHED[name]} == PUBLISHED[name]


def test_fastgen_evaluates_an_average_in_the_published_range() -> None:
    assert Recipe(name="fastgen").ema is not None
    assert 0.9996 <= Recipe(name="fastgen").ema <= 0.99995


def test_every_preset_is_a_recipe_and_every_recipe_has_one() -> None:
    assert set(PRESETS) == set(get_args(Recipe.model_fields["name"].annotation)) == set(NAMES)


some = st.lists(st.sampled_from(sorted(OTHERS)), max_size=4, unique=True)


@given(name=st.sampled_from(NAMES), changed=some)
@settings(deadline=None)
def test_overriding_some_parts_keeps_all_others(name: str, changed: list[str]) -> None:
    before = leaves(Recipe(name=name).model_dump())
    overrides = {key: OTHERS[key] for key in changed}
    after = leaves(Recipe.model_validate(nested({"name": name, **overrides})).model_dump())
    assert after == before | overrides


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_given_by_its_name_alone(name: str) -> None:
    assert Recipe.model_validate(name) == Recipe.model_validate({"name": name}) == Recipe(name=name)


def test_the_recipe_without_a_name_is_dmd2() -> None:
    assert Recipe() == Recipe(name="dmd2") == Recipe.model_validate({})


@given(name=st.sampled_from(NAMES), changed=some)
@settings(deadline=None)
def test_a_recipe_read_back_is_the_same_also_where_a_part_of_the_preset_was_taken_out(
    name: str, changed: list[str]
) -> None:
    recipe = Recipe.model_validate(nested({"name": name, **{key: OTHERS[key] for key in changed}}))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    without_average = Recipe.model_validate({"name": name, "ema": None})
    assert Recipe.model_validate_json(without_average.model_dump_json()).ema is None


def test_presets_survive_being_used() -> None:
    before = repr(PRESETS)
    Recipe.model_validate({"name": "fastgen", "generator": {"warmup": 9}})
    assert repr(PRESETS) == before


def test_merging_goes_down_into_mappings_only() -> None:
    below = {"a": {"x": 1, "y": 2}, "b": 1, "c": {"x": 1}}
    assert merged(below, {"a": {"y": 3}, "c": None, "d": {"x": 4}}) == {
        "a": {"x": 1, "y": 3},
        "b": 1,
        "c": None,
        "d": {"x": 4},
    }
    assert below == {"a": {"x": 1, "y": 2}, "b": 1, "c": {"x": 1}}


@pytest.mark.parametrize(
    ("given_recipe", "words"),
    [
        ({"dm_first": 981}, ["dm_first", "dm_last", "981", "980", "1000"]),
        ({"dm_last": 1000}, ["dm_last", "grid_size", "1000"]),
        ({"grid_size": 500}, ["dm_last", "grid_size", "980", "500"]),
        ({"fake_first": 1000}, ["fake_first", "fake_last"]),
        ({"fake_last": 1000}, ["fake_last", "grid_size"]),
        ({"adversarial_first": 1000}, ["adversarial_first", "adversarial_last"]),
        ({"adversarial_last": 1000}, ["adversarial_last", "grid_size"]),
        ({"adversarial_last": -1}, ["adversarial_last", "greater than or equal to 0"]),
        ({"adversarial_weight": -1e-3}, ["adversarial_weight", "greater than or equal to 0"]),
        ({"adversarial_weight": float("nan")}, ["adversarial_weight", "finite"]),
        ({"adversarial_weight": "some"}, ["adversarial_weight", "number"]),
        ({"name": "gan", "discriminator_weight": 0}, ["discriminator_weight", "greater than 0"]),
        ({"discriminator": "student"}, ["discriminator", "'student'", "fake, teacher"]),
        ({"name": "gan", "adversarial_weight": 0}, ["dm_weight", "adversarial_weight"]),
        ({"name": "fastgen-gan", "generator_every": 1}, ["generator_every 1", "fake_trains_with_generator"]),
        ({"dm_weight": 0}, ["dm_weight", "regression_weight"]),
        ({"name": "regression", "regression_weight": 0}, ["dm_weight", "regression_weight"]),
        ({"generator": {"beta1": 1}}, ["generator.beta1", "less than 1"]),
        ({"name": "fastgen", "ema": 1}, ["ema", "less than 1"]),
        ({"name": "fastgn"}, ["name", "'fastgen'", "fastgn"]),
        ({"name": ["dmd2"]}, ["name"]),
        ({"name": {"dmd2": 1}}, ["name"]),
        ({"name": None}, ["name"]),
        ({"generator": "fast"}, ["generator"]),
        ({"generator": {"learning_rat": 1}}, ["generator.learning_rat", "did you mean 'learning_rate'?"]),
    ],
    ids=str,
)
def test_an_impossible_recipe_is_refused_in_one_line(given_recipe: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse(Recipe, given_recipe, "here")
    message = str(refused.value)
    assert message.startswith("here: ") and "\n" not in message
    assert all(word in message for word in words), message
