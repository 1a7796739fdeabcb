"""Wrong input at the command line: status 2, one line on stderr that says what and where, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmdpipe.artifacts.plan import plan
from dmdpipe.artifacts.step import open_step
from dmdpipe.specs.data import Fashion

CONFIG = "config/config.yaml"
DIMENSION = "config/studies/dimension.yaml"
SMOKE = "config/scales/smoke.yaml"
CLAIMS = "config/claims.yaml"

# file, old text, new text, words of the message
WRONG_FILES: dict[str, tuple[str, str, str, list[str]]] = {
    "config: unknown key": (CONFIG, "scale:", "scael:", [CONFIG, "'scael'", "did you mean 'scale'?"]),
    "config: wrong type": (CONFIG, "scale: laptop", "scale: [laptop]", [CONFIG, "scale", "string"]),
    "config: unknown scale": (CONFIG, "scale: laptop", "scale: labtop", [CONFIG, "labtop", "did you mean 'laptop'?"]),
    "config: unknown study": (CONFIG, "dynamics", "dynamic", [CONFIG, "studies", "did you mean 'dynamics'?"]),
    "config: no studies": (
        CONFIG,
        "studies: [",
        "studies: []  # [",
        [CONFIG, "studies"],
    ),
    "config: results elsewhere": (CONFIG, "results: results", "results: /results", [CONFIG, "results"]),
    "config: no folder for results": (CONFIG, "results: results", "results: ''", [CONFIG, "results"]),
    "config: no YAML": (CONFIG, "scale: laptop", "scale: [laptop", [CONFIG, "line", "not valid YAML"]),
    "study: unknown key": (DIMENSION, "question:", "qestion:", [DIMENSION, "question"]),
    "study: unknown dotted key": (DIMENSION, "{data.side: 2}", "{data.sied: 2}", [DIMENSION, "data.sied", "'side'"]),
    "study: wrong type": (DIMENSION, "{data.side: 2}", "{data.side: two}", [DIMENSION, "data.side", "two"]),
    "study: impossible value": (DIMENSION, "{data.side: 2}", "{data.side: 3}", [DIMENSION, "data.side", "3"]),
    "study: unknown family": (DIMENSION, "digits", "digit", [DIMENSION, "data.family", "did you mean 'digits'?"]),
    "study: list for a name": (DIMENSION, "family: digits", "family: [digits]", [DIMENSION, "data"]),
    "study: list of recipes": (
        DIMENSION,
        "{data.side: 2}",
        "{data.side: 2, student.recipe.name: [dmd2]}",
        [DIMENSION, "student.recipe"],
    ),
    "study: noise bank too small": (
        DIMENSION,
        "{data.side: 8}",
        "{data.side: 8, bank.n_held_out: 100}",
        [DIMENSION, "n_held_out", "100", "128"],
    ),
    "study: unknown axis": (DIMENSION, "axes: {d:", "axes: {dd:", [DIMENSION, "'dd'", "did you mean 'd'?"]),
    "study: unknown label": (DIMENSION, '"4", "64"]', '"4", "46"]', [DIMENSION, "'46'", "did you mean '4'?"]),
    "study: unknown scale": (DIMENSION, "  smoke:", "  smok:", [DIMENSION, "smok", "did you mean 'smoke'?"]),
    "study: a list": (DIMENSION, "number: 3", "- number: 3", [DIMENSION]),
    "scale: unknown key": (SMOKE, "score.steps", "score.stpes", [SMOKE, "score.stpes", "did you mean 'steps'?"]),
    "scale: wrong type": (SMOKE, "seeds: 2", "seeds: two", [SMOKE, "seeds", "integer", "two"]),
    "scale: impossible value": (SMOKE, "seeds: 2", "seeds: 0", [SMOKE, "seeds", "greater than 0"]),
    "scale: negative seed": (SMOKE, "seeds: 2", "seeds: 2\nfirst_seed: -1", [SMOKE, "first_seed", "or equal to 0"]),
    "scale: impossible date": (SMOKE, "seeds: 2", "seeds: 2024-13-45", [SMOKE]),
    "claims: unknown metric": (CLAIMS, "metric: rho}", "metric: roh}", [CLAIMS, "metric", "did you mean 'rho'?"]),
    "claims: unknown study": (CLAIMS, "study: dimension", "study: dimensoin", [CLAIMS, "did you mean 'dimension'?"]),
    "claims: unknown key": (CLAIMS, "threshold: 0.5", "treshold: 0.5", [CLAIMS, "threshold"]),
}


def assert_refused(done: Any, words: list[str]) -> None:
    assert done.status == 2, done
    assert done.out == ""
    assert done.err.startswith("dmdpipe: ") and done.err.endswith("\n")
    assert done.err[:-1].isprintable(), done.err
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_named_with_its_key_and_nothing_is_written(
    dmdpipe: Callable[..., Any], checkout: Any, case: str
) -> None:
    path, old, new, words = WRONG_FILES[case]
    checkout.edit(path, old, new)
    before = checkout.files()
    assert_refused(dmdpipe("config", "check"), words)
    assert checkout.files() == before


@pytest.mark.parametrize(
    "case", ["config: unknown study", "study: unknown dotted key", "scale: wrong type", "claims: unknown metric"]
)
def test_a_run_refuses_what_the_check_refuses(dmdpipe: Callable[..., Any], checkout: Any, case: str) -> None:
    path, old, new, words = WRONG_FILES[case]
    checkout.edit(path, old, new)
    before = checkout.files()
    assert_refused(dmdpipe("run", *(["--config", "scale=smoke"] if path != CONFIG else [])), words)
    assert checkout.files() == before


@pytest.mark.parametrize("missing", [CONFIG, CLAIMS, SMOKE, DIMENSION])
def test_a_missing_file_is_named(dmdpipe: Callable[..., Any], checkout: Any, missing: str) -> None:
    (checkout / missing).unlink()
    before = checkout.files()
    done = dmdpipe("run", "--config", "scale=smoke")
    assert_refused(done, [Path(missing).stem])
    assert checkout.files() == before


def test_a_missing_notebook_is_named(dmdpipe: Callable[..., Any], checkout: Any) -> None:
    (checkout / "reports/gate.ipynb").unlink()
    assert_refused(dmdpipe("config", "check"), ["reports/gate.ipynb"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("studies show dimensoin", ["'dimensoin'", "did you mean 'dimension'?"]),
        ("studies plan dimensoin", ["'dimensoin'", "did you mean 'dimension'?"]),
        ("studies show dimension --scale smok", ["'smok'", "did you mean 'smoke'?"]),
        ("studies plan dimension --scale smok", ["'smok'", "did you mean 'smoke'?"]),
        ("studies plan --scale smok", ["'smok'", "did you mean 'smoke'?"]),
        ("results --study dimensoin", ["'dimensoin'", "did you mean 'dimension'?"]),
        ("results --scale smok", ["'smok'", "did you mean 'smoke'?"]),
        ("verdicts --scale smok", ["'smok'", "did you mean 'smoke'?"]),
        ("results", ["results/studies/", "not there yet", "./run --config scale=laptop"]),
        ("results --scale smoke", ["results/studies/", "not there yet", "./run --config scale=smoke"]),
        ("results --study dimension", ["results/studies/dimension/laptop", "not there yet"]),
        ("verdicts", ["results/verdicts/laptop/verdicts.csv", "not there yet", "./run"]),
        ("verdicts --scale smoke --criteria", ["results/verdicts/smoke/criteria.csv", "not there yet"]),
        ("run --config scale=smok", ["scale", "'smok'", "did you mean 'smoke'?"]),
        ("run --config scael=smoke", ["'scael'", "did you mean 'scale'?"]),
        ("run --config=scale=smok", ["scale", "'smok'", "did you mean 'smoke'?"]),
        ("run -C scale=smok", ["scale", "'smok'", "did you mean 'smoke'?"]),
        ("run --config smoke", ["--config", "'smoke'", "key=value"]),
        ("run --config scale=[", ["--config", "scale"]),
        ("run --config scale=2024-13-45", ["--config", "scale"]),
        ("run --config studies=dimension", ["studies", "dimension"]),
        ("run --config studies=[dimensoin]", ["studies", "did you mean 'dimension'?"]),
        ("run --config results=/tmp", ["results", "/tmp"]),
        ("run --config results=", ["results"]),
    ],
    ids=str,
)
def test_wrong_words_on_the_command_line(
    dmdpipe: Callable[..., Any], checkout: Any, words: str, message: list[str]
) -> None:
    before = checkout.files()
    assert_refused(dmdpipe(*words.split()), message)
    assert checkout.files() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("studies list --format xml", ["--format", "xml", "csv"]),
        ("results --metrik rho", ["--metrik", "--metric"]),
        ("frobnicate", ["frobnicate"]),
        ("verdict", ["'verdict'", "'verdicts'"]),
        ("studies show", ["name"]),
    ],
    ids=str,
)
def test_a_mistyped_command_or_option_is_named(dmdpipe: Callable[..., Any], words: str, message: list[str]) -> None:
    done = dmdpipe(*words.split())
    assert (done.status, done.out) == (2, "")
    assert all(word in done.err.splitlines()[-1] for word in message), done.err


@pytest.mark.parametrize("words", ["studies", "studies plan", "config check", "results", "verdicts", "run"])
def test_outside_of_a_checkout(
    dmdpipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert_refused(dmdpipe(*words.split()), ["Snakefile" if words == "run" else CONFIG])
    assert not list((tmp_path / "empty").iterdir())


def test_a_real_process_refuses_in_the_same_way(checkout: Any) -> None:
    checkout.edit(DIMENSION, "{data.side: 2}", "{data.sied: 2}")
    before = checkout.files()
    for command in (["config", "check"], ["run", "--config", "scale=smoke"]):
        done = checkout.dmdpipe(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"dmdpipe: {DIMENSION}") and done.stderr.count("\n") == 1
    assert checkout.files() == before


# Data that are not there


@pytest.mark.parametrize(
    ("folder", "words"),
    [("/nowhere", ["DMDPIPE_FASHION_MNIST", "/nowhere"]), ("empty", ["train-images-idx3-ubyte.gz", "empty"])],
)
def test_a_missing_data_folder_is_one_line_in_the_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, words: list[str]
) -> None:
    from dmdpipe.data.prepare import prepare_data

    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("DMDPIPE_FASHION_MNIST", folder if folder.startswith("/") else str(tmp_path / folder))
    monkeypatch.chdir(tmp_path)
    planned = plan("data", Fashion(side=4, n_train=10, n_held_out=5))
    manifest, log = tmp_path / "results" / planned.folder / "manifest.json", tmp_path / "results/logs/data.log"
    with pytest.raises(SystemExit) as ended, open_step(planned.canonical(), manifest, log) as step:
        prepare_data(step)
    assert ended.value.code == 1
    line = log.read_text()
    assert line.endswith("\n") and line[:-1].isprintable()
    assert all(word in line for word in words), line
    left = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert left == [log]
