"""From a wrong file to one line: file, key, what is wrong, and the nearest valid name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.config import load_config, load_scale, load_study, members_of, scale_names, study_names
from dmdpipe.specs.problems import fields_at, parse, read_yaml
from dmdpipe.specs.study import Cell, Config, Scale, Study

STUDY = "number: 1\ntitle: t\nquestion: q\nprediction: p\nbase: {data.family: digits}\n"
SCALE = "title: t\nseeds: 1\n"
CONFIG = "scale: tiny\nstudies: [mine]\nresults: results\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration folder with one study and one scale."""
    folder = tmp_path / "config"
    for place, text in (("studies/mine.yaml", STUDY), ("scales/tiny.yaml", SCALE), ("config.yaml", CONFIG)):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text)
    return folder


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as refused:
        call(*arguments)
    message = str(refused.value)
    assert message.isprintable(), message
    return message


# Files

LETTERS = "abcdefgh"
BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip(LETTERS, LETTERS[1:], strict=False)
)
HOSTILE = {
    "alias bomb": (BOMB, "line 2: not valid YAML (the alias '*a' is not allowed"),
    "alias of itself": ("&a [*a]", "the alias '*a' is not allowed"),
    "Python object": ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "set, which has no order": ("studies: !!set {a, b}", "could not determine a constructor"),
    "bytes": ("!!binary aGk=", "could not determine a constructor"),
    "word tagged as a truth": ("!!bool x", "not valid YAML"),
    "nested lists": ("[" * 50_000, "not valid YAML"),
    "nested mappings": ("{a: " * 50_000, "not valid YAML"),
    "large": ("a" * 300_000, "more than the 262144"),
    "hexadecimal integer": (f"a: 0x{'f' * 9000}", "integer is too large"),
    "decimal integer": (f"a: {'9' * 5000}", "not valid YAML"),
    "half a character": ('a: "\\ud800"', "not valid YAML"),
    "list as a key": ("? [a]\n: b", "unhashable key"),
    "date": ("a: 2001-99-99", "not valid YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    text, says = HOSTILE[case]
    (tmp_path / "a.yaml").write_text(text)
    assert says in refusal(read_yaml, tmp_path / "a.yaml")


def test_a_pipe_or_a_folder_is_refused_and_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "folder.yaml"):
        assert "no ordinary file" in refusal(read_yaml, tmp_path / name)
    (tmp_path / "file.yaml").write_text("a: 1")
    (tmp_path / "link.yaml").symlink_to("file.yaml")
    assert read_yaml(tmp_path / "link.yaml") == {"a": 1}
    (tmp_path / "circle.yaml").symlink_to("circle.yaml")
    assert "cannot be read" in refusal(read_yaml, tmp_path / "circle.yaml")


def test_yaml_is_read_as_plain_types(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1, 2.5, x, null, true]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["line 1", "not valid YAML"]),
        ("a: 1\nb: }\n", ["line 2", "not valid YAML"]),
        ("a: 1\n\tb: 2\n", ["line 2", "not valid YAML"]),
        ("a: \x00", ["not valid YAML"]),
        ("{[]: {}, ? {} : 1}", ["not valid YAML"]),
        ("a: !!python/object/apply:os.getcwd []", ["line 1", "not valid YAML"]),
        ("a: *nowhere", ["line 1", "not valid YAML"]),
        ("a: 1\nb: 2\na: 3", ["line 3", "the key 'a' stands twice"]),
        ("a: {b: {c: 1, c: 1}}", ["line 1", "the key 'c' stands twice"]),
        ("title: 2024-13-45", ["not valid YAML"]),
        ("seeds: !!int x", ["not valid YAML"]),
        ("seeds: " + 5_000 * "9", ["not valid YAML"]),
        (5_000 * "[", ["not valid YAML"]),
        (2_000 * "{a: " + "1" + 2_000 * "}", ["not valid YAML"]),
    ],
    ids=lambda given: repr(given)[:30],
)
def test_what_is_no_yaml_is_refused_in_one_line(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    message = refusal(read_yaml, path)
    assert message.startswith(str(path))
    assert len(message) < 1_000
    assert all(word in message for word in words), message


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    assert refusal(read_yaml, tmp_path / "a.yaml") == f"{tmp_path}/a.yaml: no such file; expected a YAML file there"
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml: cannot be read" in refusal(read_yaml, tmp_path / "folder.yaml")
    (tmp_path / "latin.yaml").write_bytes("título: 1".encode("latin-1"))
    assert "latin.yaml: cannot be read" in refusal(read_yaml, tmp_path / "latin.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "list"), ("", "NoneType"), ("word\n", "str"), ("3\n", "int")])
@pytest.mark.parametrize(
    ("place", "load"),
    [
        ("studies/mine.yaml", lambda folder: load_study("mine", folder)),
        ("scales/tiny.yaml", lambda folder: load_scale("tiny", folder)),
        ("config.yaml", lambda folder: load_config(None, folder)),
    ],
)
def test_a_file_that_is_no_mapping_is_named(config: Path, place: str, load: Any, text: str, kind: str) -> None:
    (config / place).write_text(text)
    assert refusal(load, config) == f"{config}/{place}: expected a mapping of keys to values, got {kind}"


# Keys


@pytest.mark.parametrize(
    ("model", "value", "message"),
    [
        (Scale, {"title": "t", "seed": 1, "seeds": 1}, "here: unknown key 'seed' (did you mean 'seeds'?)"),
        (
            Scale,
            {"title": "t", "seeds": 1, "zzz": 1},
            "here: unknown key 'zzz' (known: first_seed, seeds, seeds_together, set, title)",
        ),
        (Config, {"studies": ["a"], "scael": "b"}, "here: unknown key 'scael' (did you mean 'scale'?)"),
        (
            Cell,
            {"data": {"family": "digits", "sied": 2}},
            "here: unknown key 'data.sied' (did you mean 'side'?)",
        ),
        (
            Cell,
            {"data": {"family": "digits"}, "student": {"recipe": {"generator": {"warmpu": 3}}}},
            "here: unknown key 'student.recipe.generator.warmpu' (did you mean 'warmup'?)",
        ),
        (
            Cell,
            {"data": {"family": "digits"}, "score": {"kind": "trained", "network": {"kind": "mlp", "widht": 3}}},
            "here: unknown key 'score.network.widht' (did you mean 'width'?)",
        ),
        (
            Cell,
            {"data": {"family": "digits"}, "student": {"network": {"kind": "mlp", "widht": 3}}},
            "here: unknown key 'student.network.widht' (did you mean 'width'?)",
        ),
        (Scale, {"title": "t", "seeds": "many"}, "here: seeds: input should be a valid integer, unable to parse"),
        (Scale, {"title": "t", "seeds": 2.5}, "here: seeds: input should be a valid integer, got a number with a"),
        (Scale, {"title": "t", "seeds": -1}, "here: seeds: input should be greater than 0, got -1"),
        (Scale, {"title": ["t"], "seeds": 1}, "here: title: input should be a valid string"),
        (Scale, {"title": "t"}, "here: seeds: field required"),
        (Scale, {"title": "t", "seeds": 1, "set": [1]}, "here: set: input should be a valid dictionary"),
        (Scale, {"title": "t", "seeds": 1, 3: 4}, "here: 3: keys should be strings"),
    ],
)
def test_the_message_for_a_key(model: Any, value: dict[Any, Any], message: str) -> None:
    assert refusal(parse, model, value, "here").startswith(message)


@pytest.mark.parametrize(
    ("key", "given", "nearest"),
    [
        ("data.family", "digit", "digits"),
        ("data.family", "ringg", "ring"),
        ("student.init.kind", "techer", "teacher"),
        ("student.init.kind", "random_head", "random-head"),
        ("student.recipe.name", "dmd", "dmd2"),
        ("score.kind", "exakt", "exact"),
        ("student.network.kind", "linaer", "linear"),
    ],
)
def test_an_unknown_name_as_a_value_comes_with_the_nearest_valid_one(key: str, given: str, nearest: str) -> None:
    tree: dict[str, Any] = {"data": {"family": "digits"}}
    *parents, last = key.split(".")
    branch = tree
    for parent in parents:
        branch = branch.setdefault(parent, {})
    branch[last] = given
    message = refusal(parse, Cell, tree, "here")
    assert key in message
    assert f"did you mean '{nearest}'?" in message


@pytest.mark.parametrize("key", ["stud\nent", "a\rb", "a\x1b[31mb", "a\u2028b"])
def test_a_strange_key_cannot_break_the_line(key: str) -> None:
    refusal(parse, Study, {key: 1}, "here")
    refusal(parse, Scale, {"title": "t", "seeds": 1, key: 1}, "here")
    refusal(parse, Cell, {"data": {"family": "digits", key: 1}}, "here")


def test_long_values_are_cut() -> None:
    assert len(refusal(parse, Scale, {"title": "t", "seeds": 10_000 * "many "}, "here")) < 1_000


def test_fields_are_those_of_all_members_of_a_union_or_of_the_chosen_one() -> None:
    own = ["alpha", "fresh_first", "fresh_last", "kind", "regression_steps", "scale", "source"]
    assert sorted(fields_at(Cell, ["student", "init"])) == own
    assert fields_at(Cell, ["data", "moons"]) == ["ambient", "family", "n_held_out", "n_train", "noise"]
    assert {"side", "noise", "modes"} <= set(fields_at(Cell, ["data"]))


# The configuration folder


def test_a_good_configuration_is_read(config: Path) -> None:
    assert load_config(None, config) == Config(scale="tiny", studies=("mine",), results="results")
    assert load_config({"scale": "tiny"}, config).scale == "tiny"
    assert load_config({"results": "./out/"}, config).results == "out"
    assert study_names(config) == ["mine"] and scale_names(config) == ["tiny"]
    assert len(members_of("mine", "tiny", config)) == 1


def test_studies_come_by_their_number(config: Path) -> None:
    (config / "studies" / "aaa.yaml").write_text(STUDY.replace("number: 1", "number: 5"))
    (config / "studies" / "zzz.yaml").write_text(STUDY.replace("number: 1", "number: 0"))
    assert study_names(config) == ["zzz", "mine", "aaa"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"scale": "tinny"}, ["scale", "'tinny'", "did you mean 'tiny'?"]),
        ({"scale": "../scales/tiny"}, ["scale", "'../scales/tiny'"]),
        ({"scale": "ti\nny"}, ["scale"]),
        ({"scale": None}, ["scale", "string"]),
        ({"scale": 3}, ["scale", "string", "3"]),
        ({"studies": ["mien"]}, ["studies", "'mien'", "did you mean 'mine'?"]),
        ({"studies": ["mine", "mine"]}, ["studies", "mine"]),
        ({"studies": []}, ["studies"]),
        ({"studies": "mine"}, ["studies"]),
        ({"studies": None}, ["studies"]),
        ({"results": "/tmp/results"}, ["results", "/tmp/results"]),
        ({"results": "../results"}, ["results", "../results"]),
        ({"results": ""}, ["results"]),
        ({"results": "."}, ["results"]),
        ({"sclae": "tiny"}, ["unknown key 'sclae'", "did you mean 'scale'?", "--config"]),
        ({"zzz": 1}, ["unknown key 'zzz'", "--config"]),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused_in_one_line(
    config: Path, overrides: dict[str, Any], words: list[str]
) -> None:
    message = refusal(load_config, overrides, config)
    assert message.startswith(str(config / "config.yaml"))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("place", "text", "words"),
    [
        ("studies/mine.yaml", STUDY + "numbre: 2\n", ["studies/mine.yaml", "'numbre'", "did you mean 'number'?"]),
        ("studies/mine.yaml", STUDY.replace("title: t\n", ""), ["studies/mine.yaml", "title: field required"]),
        ("studies/mine.yaml", STUDY.replace("title: t", "title: [t]"), ["studies/mine.yaml", "title", "string"]),
        ("studies/mine.yaml", STUDY + "axes: {d: {4: {data.side: 2}}}\n", ["studies/mine.yaml", "axes.d.4", "string"]),
        ("studies/mine.yaml", STUDY + "axes: {d: [1]}\n", ["studies/mine.yaml", "axes.d"]),
        ("studies/mine.yaml", STUDY + "scales: {tiny: {sets: {}}}\n", ["scales.tiny.sets", "did you mean 'set'?"]),
        ("studies/mine.yaml", STUDY + "scales: {tinny: {seeds: 2}}\n", ["scales", "tinny", "did you mean 'tiny'?"]),
        ("scales/tiny.yaml", SCALE + "set: {score.stpes: 3}\n", ["scales/tiny.yaml", "score.stpes", "'steps'"]),
        ("scales/tiny.yaml", SCALE + "set: {score.steps: -3}\n", ["scales/tiny.yaml", "score.steps", "-3"]),
    ],
)
def test_a_wrong_study_or_scale_is_refused_in_one_line(config: Path, place: str, text: str, words: list[str]) -> None:
    (config / place).write_text(text)
    message = refusal(members_of, "mine", "tiny", config)
    assert all(word in message for word in words), message


# Hints


def test_the_nearest_name_or_all_names() -> None:
    assert did_you_mean("dimensoin", ["dimension", "dynamics"]) == " (did you mean 'dimension'?)"
    assert did_you_mean("qqq", ["b", "a"]) == " (known: a, b)"
    assert did_you_mean("qqq", []) == ""
