"""What comes after the studies: verdicts over all of them, and the notebooks of the report."""

from __future__ import annotations

from pydantic import Field

from dmdpipe.specs.base import Spec
from dmdpipe.specs.claims import Claims


class VerdictsSpec(Spec):
    """The claims, judged on all studies of one scale."""

    scale: str
    studies: tuple[str, ...]
    claims: Claims


class FigureSpec(Spec):
    """One executed notebook and the figures that it saves."""

    notebook: str
    scale: str
    source_sha256: str = Field(description="of the notebook's source file, so that an edit of it is seen")
