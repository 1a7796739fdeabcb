"""The stages: folder, files, function, spec, parents, modules and label of each. A new stage is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from dmdpipe.artifacts.checked import parse_json
from dmdpipe.artifacts.code import Code, reach
from dmdpipe.artifacts.manifest import Equality
from dmdpipe.errors import UserError, did_you_mean
from dmdpipe.specs.base import canonical_json, digest
from dmdpipe.specs.data import DataSpec, class_count, data_name, transformations
from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSamplesSpec, TeacherSpec
from dmdpipe.specs.hardware import Hardware
from dmdpipe.specs.network import network_name
from dmdpipe.specs.pairs import MapsSpec, MetricsSpec, PairsSpec
from dmdpipe.specs.report import FigureSpec, StudyFigureSpec, VerdictsSpec
from dmdpipe.specs.student import REGRESSED, StudentSpec, members_of
from dmdpipe.specs.study import EvidenceSpec

Parents = dict[str, tuple[str, Any]]

ROUNDING = Equality(kind="tolerance", reason="other instruction sets and devices round otherwise")
TRAINING = Equality(kind="statistical", reason="training amplifies the rounding of other instruction sets and devices")
TRAINING_ON_A_GPU = Equality(
    kind="statistical",
    reason="training amplifies the rounding of other GPUs, drivers and CUDA libraries; on the same ones it gives the"
    " same bytes (docs/gpu.md)",
)
# What the notebooks of the report import.
FIGURE_MODULES = ("choices", "claims", "curves", "gate", "pages", "report", "starts", "tables", "verdicts")


def _nothing(spec: Any) -> Any:
    return {}


@dataclass(frozen=True)
class Stage:
    """One kind of step.

    Attributes:
        name: what the step is called in manifests, rules and specs.
        spec: the pydantic model of its spec, or a union of models.
        folder: where its folders lie below the root of the results.
        payload: the names of exactly the files that it writes, or of those that it writes at least.
        more_files: whether it may write more files than ``payload`` names, e.g. one figure per data set.
        entry: ``module:function``; the function takes the open step.
        label: spec → readable name, unique enough for people.
        parents: spec → the steps that it reads: (stage, spec) by role.
        modules: spec → the modules that the spec selects by name, which no import statement shows.
        equality: what a run elsewhere can be held to, at the least.
        device: spec → the device on which it trains or samples.
        shards: spec → into how many shards its batches are cut, which several devices may share.
        keyed: whether the folder's name ends in the spec's digest; not so for what people open.
    """

    name: str
    spec: Any
    folder: str
    payload: tuple[str, ...]
    entry: str
    label: Callable[[Any], str]
    parents: Callable[[Any], Parents] = _nothing
    modules: Callable[[Any], set[str]] = _nothing
    equality: Equality = ROUNDING
    device: Callable[[Any], str] = lambda spec: "cpu"
    shards: Callable[[Any], int] = lambda spec: 1
    keyed: bool = True
    more_files: bool = False

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.spec)

    def parse(self, spec: Any) -> Any:
        """Return the typed spec from plain JSON types.

        Raises:
            UserError: naming the first key at fault.
        """
        return parse_json(self._adapter, canonical_json(spec), f"the spec of this {self.name} step")

    def digest(self, spec: Any) -> str:
        """Return the digest of a step of this stage; the spec nests its parents' specs."""
        return digest({"stage": self.name, "spec": spec.model_dump(mode="json")})

    def path(self, spec: Any) -> str:
        """Return the step's folder below the root of the results."""
        ending = f"-{self.digest(spec)}" if self.keyed else ""
        return f"{self.folder}/{self.label(spec)}{ending}"

    def equality_of(self, spec: Any) -> Equality:
        """Return what a run of this step elsewhere can be held to, as its manifest declares it."""
        on_gpu = self.equality == TRAINING and self.device(spec) == "cuda"
        return TRAINING_ON_A_GPU if on_gpu else self.equality

    def code(self, spec: Any) -> Code:
        """Return the code that a step can reach: from its function, from what its spec selects, and its script."""
        return reach({self.entry.partition(":")[0], *self.modules(spec)}, script=self.name)


def find_stage(name: str) -> Stage:
    """Return the stage of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in STAGES:
        raise UserError(f"there is no stage '{name}'{did_you_mean(name, STAGES)}")
    return STAGES[name]


# Labels


def _noise_label(spec: NoiseBankSpec) -> str:
    return f"d{spec.dim}_seed{spec.seed}"


def _teacher_label(spec: TeacherSpec) -> str:
    if spec.score.kind == "exact":
        return f"{data_name(spec.data)}_exact"
    return f"{data_name(spec.data)}_{network_name(spec.score.network)}_seed{spec.score.seed}"


def _teacher_samples_label(spec: TeacherSamplesSpec) -> str:
    return f"{_teacher_label(spec.teacher)}_heun{spec.sampler.steps}"


def _student_label(spec: StudentSpec) -> str:
    steps = f"_{spec.sampling_steps}steps" if spec.sampling_steps > 1 else ""
    start = f"{spec.init.kind}_{spec.recipe.name}_sigma{spec.noise_range.sigma_max:g}{steps}"
    return f"{data_name(spec.teacher.data)}_{start}_seed{spec.seed}"


# Parents


def _teacher_samples_parents(spec: TeacherSamplesSpec) -> Parents:
    return {
        "teacher": ("teacher", spec.teacher),
        "data": ("data", spec.teacher.data),
        "noise": ("noise", spec.bank),
    }


def _student_parents(spec: StudentSpec) -> Parents:
    start = {"start": ("teacher", spec.start)} if spec.start else {}
    noise = {"noise": ("noise", spec.bank)} if spec.bank else {}
    return {"teacher": ("teacher", spec.teacher), "data": ("data", spec.teacher.data)} | start | noise


def _ensemble_parents(spec: StudentSpec) -> Parents:
    return {f"teacher_{member.seed}": ("teacher", member.teacher) for member in members_of(spec)}


def _member_parents(spec: StudentSpec) -> Parents:
    return {"ensemble": ("ensemble", members_of(spec)[0])}


def _pairs_parents(spec: PairsSpec) -> Parents:
    teacher = {"teacher": ("teacher", spec.student.teacher)} if spec.student.sampling_steps > 1 else {}
    return {
        "student": ("member" if spec.student.members else "student", spec.student),
        "teacher_samples": ("teacher_samples", spec.teacher_samples),
        "noise": ("noise", spec.teacher_samples.bank),
    } | teacher


def _metrics_parents(spec: MetricsSpec) -> Parents:
    samples = spec.pairs.teacher_samples
    return {
        "pairs": ("pairs", spec.pairs),
        "teacher_samples": ("teacher_samples", samples),
        "noise": ("noise", samples.bank),
        "data": ("data", samples.teacher.data),
    }


def _maps_parents(spec: MapsSpec) -> Parents:
    own = _pairs_parents(spec.pairs)
    return {"pairs": ("pairs", spec.pairs), "teacher": ("teacher", spec.pairs.student.teacher)} | own


# Modules


def _data_modules(spec: DataSpec) -> set[str]:
    labels = ("labels",) if class_count(spec) else ()
    return {f"dmdpipe.data.{name}" for name in (spec.family, *transformations(spec), *labels)}


def _teacher_modules(spec: TeacherSpec) -> set[str]:
    if spec.score.kind == "exact":
        return {"dmdpipe.diffusion.exact"}
    return {f"dmdpipe.networks.{spec.score.network.kind}"}


def _teacher_training_modules(spec: TeacherSpec) -> set[str]:
    if spec.score.kind == "exact":
        return _teacher_modules(spec)
    fresh = {"dmdpipe.diffusion.fresh"} if spec.score.samples == "fresh" else set()
    return _teacher_modules(spec) | _hardware_modules(spec.score) | fresh


def _hardware_modules(spec: Hardware) -> set[str]:
    precision = {"dmdpipe.networks.bf16"} if spec.precision == "bf16" else set()
    shared = {"dmdpipe.diffusion.follower", "dmdpipe.diffusion.ranks"} if spec.shards > 1 else set()
    return precision | shared


def _network_modules(spec: StudentSpec) -> set[str]:
    own = "dmdpipe.distill.particles" if spec.bank else f"dmdpipe.networks.{spec.network.kind}"
    return {own, *_teacher_modules(spec.teacher)}


def _student_modules(spec: StudentSpec) -> set[str]:
    selected = {
        "dmdpipe.distill.adversarial": spec.recipe.adversarial_weight,
        "dmdpipe.distill.dmd": spec.recipe.dm_weight,
        "dmdpipe.distill.fake_score": spec.recipe.fake == "samples"
        or spec.recipe.fake_start == "fresh"
        or spec.recipe.fake_lag,
        "dmdpipe.distill.oracle": spec.recipe.fake == "oracle",
        "dmdpipe.distill.regression": spec.recipe.regression_weight or spec.init.kind in REGRESSED,
        # A fresh fake score is an MLP where neither the student nor the teacher has a network of its kind.
        "dmdpipe.networks.mlp": spec.recipe.fake_start == "fresh",
    }
    used = {module for module, is_used in selected.items() if is_used}
    return _network_modules(spec) | _hardware_modules(spec) | used


_ROWS = (
    Stage(
        name="data",
        spec=DataSpec,
        folder="data",
        payload=("data.safetensors", "facts.json"),
        entry="dmdpipe.data.prepare:prepare_data",
        label=data_name,
        modules=_data_modules,
    ),
    Stage(
        name="noise",
        spec=NoiseBankSpec,
        folder="noise",
        payload=("noise.safetensors",),
        entry="dmdpipe.pairing.bank:make_noise_bank",
        label=_noise_label,
    ),
    Stage(
        name="teacher",
        spec=TeacherSpec,
        folder="teachers",
        payload=("model.safetensors", "history.parquet"),
        entry="dmdpipe.diffusion.training:train_teacher",
        label=_teacher_label,
        parents=lambda spec: {"data": ("data", spec.data)},
        modules=_teacher_training_modules,
        equality=TRAINING,
        device=lambda spec: getattr(spec.score, "device", "cpu"),
        shards=lambda spec: getattr(spec.score, "shards", 1),
    ),
    Stage(
        name="teacher_samples",
        spec=TeacherSamplesSpec,
        folder="teacher_samples",
        payload=("samples.safetensors",),
        entry="dmdpipe.pairing.maps:sample_teacher",
        label=_teacher_samples_label,
        parents=_teacher_samples_parents,
        modules=lambda spec: _teacher_modules(spec.teacher),
        device=lambda spec: spec.sampler.device,
    ),
    Stage(
        name="student",
        spec=StudentSpec,
        folder="students",
        payload=("snapshots.safetensors", "history.parquet"),
        entry="dmdpipe.distill.loop:distil_student",
        label=_student_label,
        parents=_student_parents,
        modules=_student_modules,
        equality=TRAINING,
        device=lambda spec: spec.device,
        shards=lambda spec: spec.shards,
    ),
    Stage(
        name="ensemble",
        spec=StudentSpec,
        folder="ensembles",
        payload=("ensemble.safetensors",),
        entry="dmdpipe.distill.together:train_together",
        label=lambda spec: f"{_student_label(spec)}_of{len(spec.members.seeds)}",
        parents=_ensemble_parents,
        modules=lambda spec: {"dmdpipe.distill.dmd"} | _network_modules(spec) | _hardware_modules(spec),
        equality=TRAINING,
        device=lambda spec: spec.device,
    ),
    Stage(
        name="member",
        spec=StudentSpec,
        folder="members",
        payload=("snapshots.safetensors", "history.parquet"),
        entry="dmdpipe.distill.together:take_member",
        label=lambda spec: f"{_student_label(spec)}_of{len(spec.members.seeds)}",
        parents=_member_parents,
        modules=_network_modules,
    ),
    Stage(
        name="pairs",
        spec=PairsSpec,
        folder="pairs",
        payload=("pairs.safetensors",),
        entry="dmdpipe.pairing.maps:pair_samples",
        label=lambda spec: _student_label(spec.student),
        parents=_pairs_parents,
        modules=lambda spec: _network_modules(spec.student),
        device=lambda spec: spec.teacher_samples.sampler.device,
    ),
    Stage(
        name="metrics",
        spec=MetricsSpec,
        folder="metrics",
        payload=("metrics.parquet",),
        entry="dmdpipe.copying.measure:measure_copying",
        label=lambda spec: _student_label(spec.pairs.student),
        parents=_metrics_parents,
        modules=lambda spec: {"dmdpipe.copying.classes"} if spec.pairs.student.teacher.classes else set(),
    ),
    Stage(
        name="maps",
        spec=MapsSpec,
        folder="maps",
        payload=("maps.parquet",),
        entry="dmdpipe.copying.maps:measure_maps",
        label=lambda spec: _student_label(spec.pairs.student),
        parents=_maps_parents,
        modules=lambda spec: _network_modules(spec.pairs.student),
    ),
    Stage(
        name="evidence",
        spec=EvidenceSpec,
        folder="studies",
        payload=("results.parquet", "results.csv", "gallery.parquet"),
        entry="dmdpipe.evidence.study:gather_evidence",
        label=lambda spec: f"{spec.study}/{spec.scale}",
        keyed=False,
    ),
    Stage(
        name="verdicts",
        spec=VerdictsSpec,
        folder="verdicts",
        payload=(
            "verdicts.csv",
            "verdicts.json",
            "verdicts.parquet",
            "criteria.csv",
            "criteria.parquet",
            "sensitivity.csv",
            "sensitivity.parquet",
            "results.parquet",
            "gallery.parquet",
        ),
        entry="dmdpipe.evidence.judge:judge_claims",
        label=lambda spec: spec.scale,
        keyed=False,
    ),
    Stage(
        name="figures",
        spec=FigureSpec | StudyFigureSpec,
        folder="report",
        payload=("notebook.ipynb", "notebook.html"),
        entry="dmdpipe.figures.step:draw_figures",
        label=lambda spec: f"{spec.scale}/{spec.page}",
        modules=lambda spec: {f"dmdpipe.figures.{module}" for module in FIGURE_MODULES},
        equality=ROUNDING,
        keyed=False,
        more_files=True,
    ),
)

STAGES = {stage.name: stage for stage in _ROWS}
