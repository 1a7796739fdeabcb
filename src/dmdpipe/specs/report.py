"""What comes after the studies: verdicts over all of them, and the notebooks of the report."""

from __future__ import annotations

from pydantic import Field

from dmdpipe.specs.base import Spec
from dmdpipe.specs.claims import Claims, Criterion


class VerdictsSpec(Spec):
    """The claims, judged on all studies of one scale."""

    scale: str
    studies: tuple[str, ...]
    claims: Claims


class Axis(Spec):
    """What a study varies at one scale, in the order of its file."""

    name: str
    labels: tuple[str, ...]


class Reader(Spec):
    """A criterion that reads a study, and whose it is."""

    claim: str = Field(description="the claim's id")
    title: str = Field(description="the claim's title")
    criterion: Criterion


class StudentRef(Spec):
    """A student of a study, and where its history is."""

    point: str
    seed: int
    student: str = Field(description="folder of its student step")


class StudyPage(Spec):
    """What a study's page says of it before any result."""

    name: str
    number: int
    title: str
    question: str
    prediction: str
    changes_mind: str
    axes: tuple[Axis, ...]
    readers: tuple[Reader, ...]
    students: tuple[StudentRef, ...]


class FigureSpec(Spec):
    """One executed notebook and the figures that it saves."""

    notebook: str
    scale: str
    source_sha256: str = Field(description="of the notebook's source file, so that an edit of it is seen")

    @property
    def page(self) -> str:
        """The page's name: its folder in the report."""
        return self.notebook


class StudyFigureSpec(FigureSpec):
    """The notebook that every study shares, executed for one of them."""

    study: StudyPage

    @property
    def page(self) -> str:
        """The page's name, the same as the target that makes the study."""
        return f"study_{self.study.name}"
