"""Published digests: what each study's results came to elsewhere, to compare one's own with.

``config/published.json`` holds, for each environment class in which the default studies were run, the result root of
each study, of the verdicts and of each page at each scale, with a digest of the specs of all that it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from dmdpipe.artifacts.atomic import write_atomically
from dmdpipe.artifacts.checked import Digest, Record, Sha256, json_text, parse_json, read_bytes
from dmdpipe.artifacts.manifest import Manifest
from dmdpipe.audit.differences import few, spec_differences

FILE = Path("config", "published.json")
EnvironmentClass = dict[str, list[str]]


class PublishedRoot(Record):
    """The root of a study, of verdicts or of a page: digests of what was asked for, and of what came out of it."""

    spec: Digest
    result_root: Sha256


class PublishedClass(Record):
    """All roots that were made in one environment class, by scale and name."""

    environment: EnvironmentClass
    roots: dict[str, dict[str, PublishedRoot]]


_PUBLISHED = TypeAdapter(list[PublishedClass])


def environment_class(manifests: Iterable[Manifest]) -> EnvironmentClass:
    """Return the environment class of many steps together: every value that occurs, by field."""
    found: dict[str, set[str]] = {}
    for manifest in manifests:
        environment = manifest.provenance.environment.model_dump()
        versions = {f"libraries.{name}": number for name, number in environment.pop("libraries").items()}
        for field, value in {**environment, **versions}.items():
            found.setdefault(field, set()).add(str(value))
    return {field: sorted(values) for field, values in sorted(found.items())}


def read_published(path: Path = FILE) -> list[PublishedClass]:
    """Return all published roots; none if the file is not there.

    Raises:
        UserError: if the file is damaged.
    """
    return parse_json(_PUBLISHED, read_bytes(path), str(path)) if path.exists() else []


def relation(
    name: str, scale: str, own: PublishedRoot, environment: EnvironmentClass, published: Iterable[PublishedClass]
) -> str:
    """Say in words how a root stands to the published ones.

    Args:
        name, scale: which; ``verify.Root`` says how roots are called.
        own: its spec and root here.
        environment: the class of all steps that it was made from.
        published: as ``read_published`` returns it.
    """
    others = [(entry, entry.roots[scale][name]) for entry in published if name in entry.roots.get(scale, {})]
    if not others:
        return "no digest is published for it"
    same_spec = [(entry, root) for entry, root in others if root.spec == own.spec]
    if not same_spec:
        return "another configuration than the published one"
    for entry, root in same_spec:
        if root.result_root == own.result_root:
            elsewhere = "" if entry.environment == environment else " (of another environment class)"
            return f"reproduces the published digest{elsewhere}"
    if any(entry.environment == environment for entry, _ in same_spec):
        return "DIFFERS from the published digest of this environment class"
    nearest = min((spec_differences(entry.environment, environment) for entry, _ in same_spec), key=len)
    return f"another environment class than the published (compare with `audit diff`): {few(nearest)}"


def publish(
    roots: dict[str, dict[str, PublishedRoot]], environment: EnvironmentClass, path: Path = FILE
) -> list[PublishedClass]:
    """Write roots by scale and name into the file of published digests, in place of those of the same class.

    Raises:
        UserError: if the file is damaged; nothing is written then.
    """
    classes = {json_text(entry.environment): entry for entry in read_published(path)}
    key = json_text(environment)
    before = classes[key].roots if key in classes else {}
    merged = {scale: {**before.get(scale, {}), **roots.get(scale, {})} for scale in {*before, *roots}}
    classes[key] = PublishedClass(environment=environment, roots=merged)
    entries = [classes[key] for key in sorted(classes)]
    write_atomically(path, json_text([entry.model_dump(mode="json") for entry in entries]).encode())
    return entries
