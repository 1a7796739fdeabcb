"""Published digests: what is said of a root that equals one, differs from one, or cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmdpipe.audit.published import PublishedRoot, publish, read_published, relation
from dmdpipe.errors import UserError

HERE = {"cpu": ["A 1/2"], "python": ["3.11"]}
THERE = {"cpu": ["B 3/4"], "python": ["3.11"]}
ROOT = PublishedRoot(spec="0" * 16, result_root="1" * 64)
OTHER_BYTES = PublishedRoot(spec="0" * 16, result_root="2" * 64)
OTHER_SPEC = PublishedRoot(spec="3" * 16, result_root="1" * 64)


@pytest.mark.parametrize(
    ("own", "environment", "said"),
    [
        (ROOT, HERE, "reproduces the published digest"),
        (ROOT, THERE, "reproduces the published digest (of another environment class)"),
        (OTHER_BYTES, HERE, "DIFFERS from the published digest of this environment class"),
        (OTHER_BYTES, THERE, "another environment class than the published (compare with `audit diff`): "),
        (OTHER_SPEC, HERE, "another configuration than the published one"),
    ],
)
def test_a_root_is_compared_with_the_published_one(
    tmp_path: Path, own: PublishedRoot, environment: dict[str, list[str]], said: str
) -> None:
    entries = publish({"smoke": {"dimension": ROOT}}, HERE, tmp_path / "published.json")
    found = relation("dimension", "smoke", own, environment, entries)
    assert found == said or (said.endswith(": ") and found == f"{said}cpu.0: A 1/2 → B 3/4")
    assert relation("dimension", "laptop", own, environment, entries) == "no digest is published for it"
    assert relation("validity", "smoke", own, environment, entries) == "no digest is published for it"


def test_publishing_adds_and_replaces_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    assert read_published(path) == []
    publish({"smoke": {"a": ROOT}}, HERE, path)
    publish({"smoke": {"a": OTHER_BYTES}}, THERE, path)
    publish({"smoke": {"b": ROOT}, "laptop": {"a": ROOT}}, HERE, path)
    publish({"smoke": {"a": OTHER_SPEC}}, HERE, path)
    entries = read_published(path)
    roots = {entry.environment["cpu"][0]: entry.roots for entry in entries}
    assert roots == {
        "A 1/2": {"smoke": {"a": OTHER_SPEC, "b": ROOT}, "laptop": {"a": ROOT}},
        "B 3/4": {"smoke": {"a": OTHER_BYTES}},
    }


def test_a_damaged_file_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "published.json"
    path.write_text('[{"environment": 1}]')
    with pytest.raises(UserError, match=r"published\.json: 0\.environment"):
        publish({"smoke": {"a": ROOT}}, HERE, path)
    assert path.read_text() == '[{"environment": 1}]'
