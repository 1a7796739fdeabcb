"""Planned steps: a spec, the steps that it needs, and the one text from which a job runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from pydantic import TypeAdapter

from dmdpipe.artifacts.checked import Digest, Record, RelativePath, parse_json
from dmdpipe.artifacts.code import Code
from dmdpipe.artifacts.stages import Stage, find_stage
from dmdpipe.specs.base import canonical_json, digest


class ParentOrder(Record):
    """A parent of an ordered step: its folder, the digest of its spec, and its ``PlannedStep.provenance``."""

    folder: RelativePath
    digest: Digest
    code: Digest


class Order(Record):
    """All that a job is told: what to make, by which code, from what. If any of this changes, the step is stale."""

    stage: str
    spec: dict[str, Any]
    code: Digest
    parents: dict[str, ParentOrder]


_ORDER = TypeAdapter(Order)


@dataclass(frozen=True)
class PlannedStep:
    """One step of the DAG, before it runs.

    Attributes:
        stage: the name of its stage.
        spec: its typed spec.
        parents: the steps that it reads, by role; derived from the spec unless given.
    """

    stage: str
    spec: Any
    parents: Mapping[str, PlannedStep] = field(default=None, compare=False, repr=False)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        if self.parents is None:
            found = self._stage.parents(self.spec)
            object.__setattr__(self, "parents", {role: plan(*parent) for role, parent in found.items()})

    @cached_property
    def _stage(self) -> Stage:
        return find_stage(self.stage)

    @property
    def label(self) -> str:
        """A readable name, not unique."""
        return self._stage.label(self.spec)

    @cached_property
    def digest(self) -> str:
        """The digest of stage and spec, parents' specs included; neither code nor environment."""
        return self._stage.digest(self.spec)

    @cached_property
    def folder(self) -> str:
        """Where its files lie below the root of the results."""
        return self._stage.path(self.spec)

    @cached_property
    def code(self) -> Code:
        """The code that the step itself can reach."""
        return self._stage.code(self.spec)

    @property
    def code_digest(self) -> str:
        """The digest of that code."""
        return self.code.digest

    @cached_property
    def provenance(self) -> str:
        """The digest of the step's code and of the code of every step that it depends on."""
        parents = {role: parent.provenance for role, parent in self.parents.items()}
        return digest({"code": self.code_digest, "parents": parents})

    def canonical(self) -> str:
        """Return the order of this step as canonical JSON: the one parameter of its rule."""
        parents = {
            role: ParentOrder(folder=parent.folder, digest=parent.digest, code=parent.provenance)
            for role, parent in self.parents.items()
        }
        spec = self.spec.model_dump(mode="json")
        return canonical_json(Order(stage=self.stage, spec=spec, code=self.code_digest, parents=parents))


@cache
def plan(stage: str, spec: Any) -> PlannedStep:
    """Return the planned step of a stage and a spec; equal ones are one object: many steps share parents."""
    return PlannedStep(stage, spec)


def read_order(canonical: str) -> Order:
    """Return the order that ``PlannedStep.canonical`` wrote.

    Raises:
        UserError: if the text is no such order.
    """
    return parse_json(_ORDER, canonical, "the step's order")
