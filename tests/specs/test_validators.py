"""Parts that do not fit together: refused with one line that names the key and says what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from dmdpipe.errors import UserError
from dmdpipe.specs.data import Digits
from dmdpipe.specs.diffusion import NoiseBankSpec, NoiseRange, TeacherSpec, TrainedScore
from dmdpipe.specs.network import UNet
from dmdpipe.specs.pairs import MapsSpec, PairsSpec
from dmdpipe.specs.problems import parse
from dmdpipe.specs.student import StudentSpec
from dmdpipe.specs.study import BankSettings, Config, MetricSettings, Scale, StudentSettings, Study

TRAINED = {"data": {"family": "gaussian", "dim": 4}}
EXACT = {**TRAINED, "score": {"kind": "exact"}}
EXACT_RING = {"data": {"family": "ring"}, "score": {"kind": "exact"}}
LINEAR = {"network": {"kind": "linear"}, "recipe": {"fake": "oracle"}}
ORACLE_MLP = {"recipe": {"fake": "oracle"}}
REGRESSION = {"recipe": {"name": "regression"}}
GAN = {"recipe": {"name": "gan"}}
LINEAR_GAN = {"network": {"kind": "linear"}, "recipe": {"fake": "oracle", "adversarial_weight": 1}}

BANK = {"dim": 4, "n_paired": 10, "n_held_out": 8}
PARTICLES = {"teacher": TRAINED, "network": {"kind": "particles", "count": 10}, "bank": BANK}


UNET = {"kind": "unet", "channels": 8}
OF_UNET = {"data": {"family": "photos", "side": 7}, "score": {"kind": "trained", "network": UNET}}
PLANE = {"teacher": TRAINED, "network": UNET, "init": {"kind": "random-head"}}


def pairs_of(**student: Any) -> dict[str, Any]:
    """A student's pairs with its teacher, on the standard bank."""
    return {"student": {"teacher": TRAINED, **student}, "teacher_samples": {"teacher": TRAINED, "bank": {"dim": 4}}}


FINE: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (TeacherSpec, TRAINED),
    (TeacherSpec, EXACT),
    (TeacherSpec, EXACT_RING),
    (StudentSpec, {"teacher": TRAINED}),
    (StudentSpec, {"teacher": EXACT, **LINEAR}),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "init": {"kind": "rotated"}}),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "batches": "expected"}),
    (StudentSpec, {"teacher": TRAINED, **REGRESSION}),
    (StudentSpec, {"teacher": TRAINED, **GAN}),
    (StudentSpec, {"teacher": EXACT_RING, "init": {"kind": "random-head"}, **REGRESSION}),
    *(
        (StudentSpec, {"teacher": TRAINED, "init": {"kind": kind}, "network": {"kind": "mlp", "width": 8}})
        for kind in ("random-head", "kd")
    ),
    *((StudentSpec, {"teacher": TRAINED, "init": {"kind": kind}}) for kind in ("rotated", "edm-default", "kd-rotated")),
    *((StudentSpec, {"teacher": TRAINED, "init": {"kind": kind, "scale": 2}}) for kind in ("teacher", "random-head")),
    (MapsSpec, {"pairs": pairs_of()}),
    (StudentSpec, PARTICLES),
    (StudentSpec, {**PARTICLES, "init": {"kind": "random-head"}, "recipe": {"fake_start": "fresh", "fake_lag": 2}}),
    (PairsSpec, {"student": PARTICLES, "teacher_samples": {"teacher": TRAINED, "bank": BANK}}),
    (StudentSpec, {"teacher": OF_UNET, "network": UNET, **GAN}),
    (StudentSpec, {"teacher": OF_UNET, "network": UNET, "shards": 2, "recipe": {"regression_weight": 1}}),
    (TrainedScore, {"network": UNET, "shards": 256}),
    (StudentSpec, {"teacher": OF_UNET, "network": {"kind": "mlp"}, "init": {"kind": "random-head"}}),
    (UNet, {"multipliers": [1], "attention": []}),
    (NoiseBankSpec, {"dim": 2_000, "n_held_out": 4_000}),
    (TrainedScore, {"device": "cuda", "precision": "tf32"}),
    (StudentSpec, {"teacher": TRAINED, "precision": "bf16"}),
    (StudentSpec, {"teacher": TRAINED, "device": "cuda", "dtype": "float64"}),
]

REFUSED: list[tuple[type[BaseModel], dict[str, Any], list[str]]] = [
    (TeacherSpec, {**EXACT, "data": {"family": "moons"}}, ["score.kind", "'moons'", "trained"]),
    (TeacherSpec, {**EXACT, "data": {"family": "digits"}}, ["score.kind", "'digits'", "trained"]),
    (TeacherSpec, {}, ["data", "required"]),
    *(
        (TeacherSpec, {**OF_UNET, "data": data}, ["score.network.kind 'unet'", "pixels"])
        for data in ({"family": "ring"}, {"family": "gaussian", "dim": 16}, {"family": "digits", "ambient": {}})
    ),
    (StudentSpec, {**PLANE, "teacher": EXACT_RING}, ["network.kind 'unet'", "'ring'"]),
    (StudentSpec, {"teacher": OF_UNET, "network": {**UNET, "blocks": 1}}, ["network must equal the teacher's"]),
    (
        StudentSpec,
        {"teacher": OF_UNET, "network": UNET, "init": {"kind": "partial", "fresh_last": 1}},
        ["init.kind 'partial'", "mlp"],
    ),
    *((UNet, {"attention": levels}, ["attention", "0 to 2"]) for levels in ([3], [1, 0], [1, 1])),
    (UNet, {"channels": 12}, ["channels", "multiple of 8"]),
    (UNet, {"multipliers": []}, ["multipliers"]),
    (StudentSpec, {"teacher": TRAINED, **LINEAR}, ["network.kind", "linear", "gaussian", "exact"]),
    (StudentSpec, {"teacher": EXACT_RING, **LINEAR}, ["network.kind", "linear", "gaussian", "exact"]),
    *(
        (StudentSpec, {"teacher": EXACT, **LINEAR, "init": {"kind": kind}}, ["init.kind", kind, "mlp"])
        for kind in ("edm-default", "random-head", "random-no-skip", "kd", "kd-one-step", "kd-rotated")
    ),
    (StudentSpec, {"teacher": TRAINED, **ORACLE_MLP}, ["recipe.fake", "oracle", "linear"]),
    (StudentSpec, {"teacher": EXACT, "network": {"kind": "linear"}}, ["recipe.fake", "'learned'", "'oracle'"]),
    (StudentSpec, {"teacher": TRAINED, "batches": "expected"}, ["batches", "expected", "linear", "oracle"]),
    *(
        (StudentSpec, {"teacher": EXACT, "init": {"kind": kind}}, ["init.kind", kind, "score.kind", "trained"])
        for kind in ("teacher", "rotated", "kd-rotated")
    ),
    *(
        (
            StudentSpec,
            {"teacher": TRAINED, "init": {"kind": kind}, "network": {"kind": "mlp", "width": 8}},
            ["copies weights", "network must equal the teacher's", "'kd' or 'random-head'"],
        )
        for kind in ("teacher", "rotated", "kd-rotated")
    ),
    (StudentSpec, {"teacher": EXACT, "init": {"kind": "random-head"}}, ["recipe.fake", "learned", "score.kind"]),
    *(
        (StudentSpec, {"teacher": EXACT, **given}, ["recipe.adversarial_weight", "score.kind", "trained"])
        for given in ({"init": {"kind": "random-head"}, **GAN}, LINEAR_GAN)
    ),
    (StudentSpec, {"teacher": TRAINED, "sampling_steps": 0}, ["sampling_steps", "greater than or equal to 1"]),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "sampling_steps": 2}, ["sampling_steps", "mlp"]),
    *(
        (StudentSpec, {"teacher": TRAINED, "sampling_steps": 2, **given}, ["sampling_steps 1", "one step"])
        for given in ({"init": {"kind": "kd"}}, {"init": {"kind": "rotated"}}, {"recipe": {"regression_weight": 1}})
    ),
    (StudentSpec, {"teacher": TRAINED, "generator_steps": 0}, ["generator_steps", "greater than 0"]),
    (StudentSpec, {"teacher": TRAINED, "seed": -1}, ["seed", "greater than or equal to 0"]),
    (StudentSpec, {"teacher": TRAINED, "dtype": "float16"}, ["dtype", "float16", "did you mean 'float64'?"]),
    (TrainedScore, {"shards": 2}, ["shards 2", "network.kind 'unet'", "'mlp'"]),
    (TrainedScore, {"network": UNET, "shards": 3}, ["shards 3", "batch is 256"]),
    (TrainedScore, {"network": UNET, "shards": 0}, ["shards", "greater than or equal to 1"]),
    (StudentSpec, {"teacher": TRAINED, "shards": 2}, ["shards 2", "network.kind 'unet'"]),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "shards": 2}, ["shards 2", "network.kind 'unet'"]),
    (StudentSpec, {**PARTICLES, "shards": 2}, ["shards 2", "network.kind 'unet'"]),
    *(
        (StudentSpec, {"teacher": OF_UNET, "network": UNET, "shards": 2, **given}, ["shards 2", word])
        for given, word in (
            ({"batch": 7}, "batch is 7"),
            ({"init": {"kind": "kd"}}, "'kd'"),
            ({"init": {"kind": "kd-rotated"}}, "'kd-rotated'"),
            ({"recipe": {"fake": "samples"}}, "'samples'"),
        )
    ),
    (Config, {"studies": ["one"], "devices": 0}, ["devices", "greater than 0"]),
    (TrainedScore, {"precision": "tf32"}, ["precision 'tf32'", "device 'cuda'"]),
    (TrainedScore, {"device": "gpu"}, ["device", "'gpu'", "did you mean 'cpu'?"]),
    (TrainedScore, {"precision": "fp16"}, ["precision", "fp16", "bf16"]),
    (StudentSpec, {"teacher": TRAINED, "precision": "tf32"}, ["precision 'tf32'", "device 'cuda'"]),
    (StudentSettings, {"precision": "tf32"}, ["precision 'tf32'", "device 'cuda'"]),
    (
        StudentSpec,
        {"teacher": TRAINED, "device": "cuda", "precision": "bf16", "dtype": "float64"},
        ["precision 'bf16'", "dtype 'float32'", "'float64'"],
    ),
    (
        StudentSpec,
        {"teacher": TRAINED, "device": "cuda", "precision": "tf32", "dtype": "float64"},
        ["precision 'tf32'", "dtype 'float32'", "'float64'"],
    ),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "device": "cuda"}, ["network.kind 'linear'", "device 'cpu'"]),
    (StudentSpec, {"teacher": EXACT, **LINEAR, "precision": "bf16"}, ["network.kind 'linear'", "precision 'full'"]),
    (StudentSpec, {**PARTICLES, "bank": None}, ["bank", "particles", "both or neither"]),
    (StudentSpec, {"teacher": TRAINED, "bank": BANK}, ["bank", "particles", "both or neither"]),
    (StudentSpec, {**PARTICLES, "bank": {**BANK, "dim": 3}}, ["bank.dim (3)", "dimension, 4"]),
    (
        StudentSpec,
        {**PARTICLES, "network": {"kind": "particles", "count": 9}},
        ["network.count (9)", "bank.n_paired (10)", "every paired noise"],
    ),
    (StudentSpec, {**PARTICLES, "network": {"kind": "particles", "width": 9}}, ["network", "width", "count"]),
    (StudentSpec, {**PARTICLES, "teacher": EXACT}, ["network.kind 'particles'", "score.kind", "'trained'"]),
    *(
        (
            StudentSpec,
            {**PARTICLES, "init": {"kind": kind}},
            [f"init.kind '{kind}'", "teacher, edm-default, random-head"],
        )
        for kind in ("rotated", "kd", "kd-rotated", "random-no-skip", "other-teacher", "partial", "interpolated")
    ),
    (StudentSpec, {**PARTICLES, "sampling_steps": 2}, ["network.kind 'particles'", "sampling_steps 1"]),
    *(
        (StudentSpec, {**PARTICLES, "recipe": recipe}, ["regression_weight", "'samples'", "'mlp'", "fresh noise"])
        for recipe in ("regression", {"regression_weight": 1}, {"fake": "samples"})
    ),
    (StudentSpec, {**PARTICLES, "recipe": {"fake": "oracle"}}, ["recipe.fake", "oracle", "linear"]),
    (StudentSpec, {**PARTICLES, "batches": "expected"}, ["batches", "expected", "linear"]),
    (StudentSpec, {**PARTICLES, "members": {"seeds": [0, 1]}}, ["members", "an ensemble is of networks"]),
    (
        PairsSpec,
        {"student": PARTICLES, "teacher_samples": {"teacher": TRAINED, "bank": {**BANK, "n_paired": 9}}},
        ["student.bank", "teacher_samples.bank", "the same"],
    ),
    (NoiseRange, {"sigma_min": 80}, ["sigma_min", "sigma_max", "80"]),
    (NoiseRange, {"sigma_min": 0}, ["sigma_min", "greater than 0"]),
    (NoiseRange, {"sigma_max": "high"}, ["sigma_max", "number", "high"]),
    (NoiseRange, {"sigma_max": float("inf")}, ["sigma_max", "finite"]),
    (NoiseRange, {"sigma_max": float("nan")}, ["sigma_max", "finite"]),
    (NoiseBankSpec, {"dim": 64, "n_held_out": 127}, ["n_held_out", "127", "128"]),
    (NoiseBankSpec, {"dim": 64, "n_reference_sets": 1}, ["n_reference_sets", "2"]),
    (BankSettings, {"n_paired": 0}, ["n_paired", "greater than or equal to 2"]),
    # ρ and its null need two pairs at least.
    (BankSettings, {"n_paired": 1}, ["n_paired", "2"]),
    (MetricSettings, {"whitened_variance": 1.5}, ["whitened_variance", "1"]),
    (
        PairsSpec,
        {
            "student": {"teacher": TRAINED},
            "teacher_samples": {"teacher": EXACT, "bank": {"dim": 4}},
        },
        ["student.teacher", "teacher_samples.teacher"],
    ),
    (
        PairsSpec,
        {
            "student": {"teacher": TRAINED},
            "teacher_samples": {"teacher": TRAINED, "bank": {"dim": 4}, "noise_range": {"sigma_max": 8}},
        },
        ["student.noise_range", "teacher_samples.noise_range"],
    ),
    (
        StudentSpec,
        {"teacher": TRAINED, "sampling_steps": 2, "recipe": {"fake": "samples"}},
        ["fake 'samples'", "one step"],
    ),
    *(
        (StudentSpec, {"teacher": TRAINED, "recipe": {"name": "regression", **given}}, ["no effect", "dm_weight"])
        for given in ({"fake": "samples"}, {"fake_lag": 2}, {"fake_start": "fresh"}, {"score_noise": 0.5})
    ),
    (StudentSpec, {"teacher": TRAINED, "recipe": {"score_noise": -0.1}}, ["recipe.score_noise", "greater than"]),
    (
        StudentSpec,
        {"teacher": EXACT, **LINEAR, "batches": "expected", "recipe": {"fake": "oracle", "score_noise": 0.5}},
        ["recipe.score_noise needs batches 'random'"],
    ),
    (StudentSpec, {"teacher": TRAINED, "init": {"scale": 0}}, ["init.scale", "greater than 0"]),
    (StudentSpec, {"teacher": TRAINED, "init": {"kind": "edm-default", "scale": 2}}, ["scale", "no effect"]),
    (
        StudentSpec,
        {"teacher": TRAINED, "recipe": {"fake_lag": 10**12}},
        ["recipe.fake_lag", "less than or equal to 1000"],
    ),
    (StudentSpec, {"teacher": TRAINED, "recipe": {"fake_lag": -1}}, ["recipe.fake_lag", "greater than or equal to 0"]),
    (Digits, {"class_means": True, "law": "gaussian"}, ["class_means", "law 'gaussian'"]),
    *(
        (MapsSpec, {"pairs": pairs_of(**student), **settings}, words)
        for student, settings, words in (
            ({"sampling_steps": 2}, {}, ["sampling_steps must be 1"]),
            ({}, {"particles": 4}, ["maps.particles", "d = 4"]),
            ({}, {"particles": 9_000}, ["maps.particles", "bank.n_held_out"]),
            ({}, {"transport_pairs": 50_000}, ["transport_pairs", "4096"]),
        )
    ),
    (Scale, {"title": "t", "seeds": 0}, ["seeds", "greater than 0"]),
    (Scale, {"seeds": 1}, ["title", "required"]),
    (Study, {"number": -1, "title": "t", "question": "q", "prediction": "p"}, ["number", "greater than or equal"]),
    (Config, {"studies": []}, ["studies", "at least"]),
    (Config, {"studies": "dimension"}, ["studies", "dimension"]),
    (Config, {"studies": ["a"], "scale": 3}, ["scale", "string", "3"]),
]


def ids(cases: list[Any]) -> list[str]:
    return [f"{case[0].__name__}: {' '.join(case[2]) if len(case) > 2 else case[1]}"[:80] for case in cases]


@pytest.mark.parametrize(("model", "value"), FINE, ids=ids(FINE))
def test_what_fits_together_is_accepted(model: type[BaseModel], value: dict[str, Any]) -> None:
    parse(model, value, "here")


@pytest.mark.parametrize(("model", "value", "words"), REFUSED, ids=ids(REFUSED))
def test_what_does_not_fit_is_refused_in_one_line(
    model: type[BaseModel], value: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        parse(model, value, "here")
    message = str(refused.value)
    assert message.startswith("here: ") and "\n" not in message
    assert all(word in message for word in words), message
