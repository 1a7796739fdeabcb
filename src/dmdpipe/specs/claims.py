"""Claims about distillation, and the criteria by which they stand or fall (``config/claims.yaml``).

Controls (``config/controls.yaml``) are written in the same way.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, FiniteFloat, NonNegativeInt, model_validator

from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.base import Spec
from dmdpipe.specs.problems import parse, read_yaml
from dmdpipe.specs.student import InitKind

MetricName = Literal[
    "rho",
    "rho_rotated",
    "rho_shuffled",
    "rho_resampled",
    "rho_resampling",
    "rho_affine",
    "rho_affine_matched",
    "rho_initial",
    "rho_floor",
    "linear_excess",
    "linear_excess_matched",
    "delta_e",
    "delta_e_null",
    "normalised_excess_cost",
    "cosine",
    "cosine_whitened",
    "retrieval_at_1",
    "retrieval_null",
    "normalised_rank",
    "mode_agreement",
    "rho_within_mode",
    "rho_same_mode",
    "rho_within_class",
    "rho_within_class_shuffled",
    "rho_same_class",
    "rho_affine_within_class",
    "delta_e_same_class",
    "retrieval_same_class",
    "gate_ratio_within_class",
    "rotation",
    "sliced_w2",
    "sliced_w2_floor",
    "sliced_w2_over_floor",
    "sliced_w2_data",
    "energy",
    "energy_floor",
    "energy_over_floor",
    "energy_data",
    "gate_ratio",
    "novelty_teacher",
    "novelty_data",
    "inference_cost",
    "scale_ratio",
    "jacobian_alignment",
    "nearest_ratio",
    "nearest_ratio_held_out",
    "memorized",
    "memorized_held_out",
    "rho_transport",
    "rho_transport_teacher",
    "rho_gaussian_transport",
    "rho_gaussian_transport_teacher",
    "rho_flow",
    "rho_flow_teacher",
    "rho_linear",
    "flow_gate_ratio",
    "jacobian_asymmetry",
    "jacobian_asymmetry_teacher",
    "transport_pairs",
    "transport_slope",
    "rho_start",
    "rho_as_started",
    "rho_late_change",
    "log2_drift_speed",
    "seed_seed",
]
OF_CONTROLS = frozenset(("rho_start", "rho_as_started", "rho_late_change", "log2_drift_speed", "seed_seed"))
"""Made for the controls alone (``dmdpipe.evidence.derived``): no results table has them when claims are judged."""


def _known_metric(given: Any) -> Any:
    if given not in get_args(MetricName):
        raise ValueError(f"unknown metric '{given}'{did_you_mean(str(given), get_args(MetricName))}")
    return given


Metric = Annotated[MetricName, BeforeValidator(_known_metric)]


def _as_tuple(given: Any) -> Any:
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_as_tuple)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_as_tuple)]
Inits = Annotated[tuple[InitKind, ...], BeforeValidator(_as_tuple)]


class Selection(Spec):
    """Which of a study's points count: one value or a list per column of the results table; () takes all."""

    point: Texts = Field((), description="the point's own name")
    data: Texts = Field((), description="data set, e.g. ring or digits-8x8")
    d: Integers = Field((), description="number of coordinates of one sample")
    network: Texts = Field((), description="kind of network")
    init: Inits = Field((), description="the student's start")
    recipe: Texts = Field((), description="name of the recipe")
    sigma_max: Numbers = Field((), description="largest noise level σ_max, in units of the scaled data")


class Value(Spec):
    """A metric at the read-out step, averaged over the selected points."""

    metric: Metric = Field(description="name of the metric")


class Difference(Spec):
    """A metric minus itself at other points, or minus another metric; averaged over the selected points."""

    metric: Metric = Field(description="name of the metric")
    minus: Selection | None = Field(
        None, description="subtract the metric at these points: the selection, with these columns replaced"
    )
    minus_metric: Metric | None = Field(None, description="subtract this metric, at the same points")

    @model_validator(mode="after")
    def _one_thing_is_subtracted(self) -> Difference:
        if (self.minus is None) == (self.minus_metric is None):
            raise ValueError("give either minus or minus_metric")
        if self.minus == Selection() or self.minus_metric == self.metric:
            raise ValueError("nothing would be left: subtract other points or another metric")
        return self


class Slope(Spec):
    """The least-squares slope of a metric over the selected points, per doubling of a column."""

    metric: Metric = Field(description="name of the metric")
    against: Literal["d", "sigma_max"] = Field(description="the column; the abscissa is its log2")


class At(Spec):
    """A metric at a generator step."""

    metric: Metric = Field(description="name of the metric")
    generator_step: NonNegativeInt | None = Field(None, description="0 is the start; null is the read-out step")


class RankCorrelation(Spec):
    """Spearman's rank correlation over the selected points between a metric and another quantity."""

    metric: Metric = Field(description="name of the metric, at the read-out step")
    against: At = Field(description="what it is correlated with")


class Statistic(Spec):
    """The number that a criterion is about, over seeds. Give exactly one of the keys."""

    value: Value | None = Field(None, description="a metric")
    difference: Difference | None = Field(None, description="a difference of two metrics or two selections")
    slope: Slope | None = Field(None, description="a trend over the points, per doubling of a column")
    rank_correlation: RankCorrelation | None = Field(None, description="a rank correlation over the points")

    @model_validator(mode="after")
    def _exactly_one(self) -> Statistic:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise ValueError(f"give exactly one of {known}; got {' and '.join(given) or 'none'}")
        return self


class Criterion(Spec):
    """A prediction about one statistic of one study, with the threshold that it must clear."""

    name: str = Field(min_length=1, description="short name, unique within the claim")
    study: str = Field(min_length=1, description="the study whose runs are read")
    select: Selection = Field(Selection(), description="which of its points")
    statistic: Statistic = Field(description="the number that every seed yields")
    predicts: Literal["below", "above"] = Field(description="the side of the threshold on which the claim puts it")
    threshold: FiniteFloat = Field(description="in the units of the statistic")
    premise: bool = Field(
        False, description="what the claim's test takes for granted: unless it holds, nothing is tested"
    )
    because: str = Field(min_length=1, description="why this statistic and this threshold")

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that it reads, at whatever step."""
        given = self.statistic
        if given.rank_correlation is not None:
            return frozenset((given.rank_correlation.metric, given.rank_correlation.against.metric))
        one = given.value or given.difference or given.slope
        assert one is not None
        minus = one.minus_metric if isinstance(one, Difference) else None
        return frozenset(metric for metric in (one.metric, minus) if metric is not None)


class Claim(Spec):
    """A statement that the studies can support, refute or leave open."""

    id: str = Field(min_length=1, description="short id, e.g. C1")
    title: str = Field(min_length=1, description="a few words")
    statement: str = Field(min_length=1, description="what is claimed, in plain words")
    level_of_evidence: str = Field(min_length=1, description="what a verdict here rests on, and how far it reaches")
    criteria: tuple[Criterion, ...] = Field(
        (), description="all must hold to support the claim, one failing refutes it"
    )
    without_study: str | None = Field(None, min_length=1, description="why it has no criterion yet")

    @model_validator(mode="after")
    def _criteria_or_a_reason(self) -> Claim:
        if bool(self.criteria) == (self.without_study is not None):
            raise ValueError("give either criteria or without_study")
        if self.criteria and all(criterion.premise for criterion in self.criteria):
            raise ValueError("all criteria are premises: nothing would be tested")
        names = [criterion.name for criterion in self.criteria]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two criteria are named '{twice[0]}'")
        return self


class Claims(Spec):
    """All claims. The number of those with criteria sets the correction for testing many."""

    claims: tuple[Claim, ...] = Field(min_length=1, description="the claims")

    @property
    def tested(self) -> tuple[Claim, ...]:
        """The claims that have criteria: only they can come out supported or refuted."""
        return tuple(claim for claim in self.claims if claim.criteria)

    @property
    def metrics(self) -> frozenset[str]:
        """The metrics that any criterion reads."""
        return frozenset().union(*(criterion.metrics for claim in self.claims for criterion in claim.criteria))

    @model_validator(mode="after")
    def _ids_differ(self) -> Claims:
        ids = [claim.id for claim in self.claims]
        if twice := sorted({id_ for id_ in ids if ids.count(id_) > 1}):
            raise ValueError(f"two claims have the id '{twice[0]}'")
        return self


def load_claims(path: Path, studies: Collection[str], *, controls: bool = False) -> Claims:
    """Return the claims in a YAML file; ``studies`` are the names of all studies that exist.

    Args:
        path: the file.
        studies: names of studies.
        controls: whether it holds controls, which read more metrics (``OF_CONTROLS``).

    Raises:
        UserError: naming file and key, if a key is unknown or missing, a value is not what the key takes, or
            a criterion names no known study or a metric that it can't read; or naming the file, if it is no YAML file.
    """
    claims = parse(Claims, read_yaml(path), str(path))
    for i, claim in enumerate(claims.claims):
        for j, criterion in enumerate(claim.criteria):
            key = f"claims.{i}.criteria.{j}"
            if criterion.study not in studies:
                hint = did_you_mean(criterion.study, studies)
                raise UserError(f"{path}: {key}.study: there is no study '{criterion.study}'{hint}")
            if not controls and (unread := sorted(criterion.metrics & OF_CONTROLS)):
                raise UserError(
                    f"{path}: {key}.statistic: '{unread[0]}' is made for controls alone; a criterion that reads it"
                    " belongs in controls.yaml"
                )
    return claims
