"""Where students start: every S₀ against its definition, and what depends on the seed and what does not."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dmdpipe.data.prepare import prepare
from dmdpipe.data.rotations import haar_rotation
from dmdpipe.diffusion.sampler import teacher_map
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.initialisation import initialise
from dmdpipe.distill.loop import distil
from dmdpipe.distill.regression import make_pair_pool
from dmdpipe.distill.student import build_student, rotation_of
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.pairing.bank import noise_rows
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import Gaussian, Moons
from dmdpipe.specs.diffusion import NoiseBankSpec, NoiseRange, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=16, depth=2, embedding=8)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
SIGMA_MAX = 80.0
C_SKIP = 0.25 / (SIGMA_MAX**2 + 0.25)
KINDS = ("teacher", "rotated", "edm-default", "random-head", "random-no-skip")


def teacher(dtype=torch.float32):
    network = build_network(SMALL, 2, seed=77)
    return load_teacher(TEACHER, {name: value.numpy() for name, value in network.state_dict().items()}, dtype)


def start(kind, seed=0, noise_range=None, **fields):
    """Return the student at its start, as the distillation makes it."""
    spec = StudentSpec(
        teacher=TEACHER,
        network=fields.pop("network", SMALL),
        init={"kind": kind, **fields.pop("init", {})},
        seed=seed,
        noise_range=noise_range or NoiseRange(),
        generator_steps=1,
        batch=fields.pop("batch", 4),
        **fields,
    )
    snapshots, _ = distil(spec, teacher(getattr(torch, spec.dtype)))
    student = build_student(spec)
    student.load_state_dict({name: value[0] for name, value in snapshots.items() if name != "generator_step"})
    return student.requires_grad_(False)


def noise(n=200, dtype=torch.float32):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)).to(dtype)


def answer(z, sigma=SIGMA_MAX):
    """D_teacher(σ·z, σ)."""
    return teacher(z.dtype)(sigma * z, z.new_full((1, 1), sigma))


def test_edm_default_is_a_multiple_of_the_noise_itself():
    z = noise(dtype=torch.float64)
    assert_close(start("edm-default", dtype="float64")(z), C_SKIP * SIGMA_MAX * z, rtol=1e-13, atol=0)


@pytest.mark.parametrize("sigma_max", [2.0, 80.0])
def test_the_teachers_start_is_its_answer_at_the_largest_noise_level(sigma_max):
    z = noise()
    assert torch.equal(start("teacher", noise_range=NoiseRange(sigma_max=sigma_max))(z), answer(z, sigma_max))


def test_the_rotated_start_is_the_teachers_behind_the_banks_rotation():
    z = noise()
    student = start("rotated")
    rotation = torch.from_numpy(haar_rotation(2)).float()
    assert torch.equal(student(z), answer(z @ rotation.T))
    assert torch.equal(student(z), start("teacher")(z @ rotation.T))
    assert (student(z) - start("teacher")(z)).abs().max() > 0.1
    # Sample by sample, Q·z with z as a column.
    assert_close(student(z[:1]), answer((rotation @ z[0])[None]))


def test_random_starts_differ_in_their_skip_connection_only():
    """The same fresh weights with and without c_skip·σ_max·z."""
    z = noise(dtype=torch.float64)
    with_skip, without = (start(kind, dtype="float64") for kind in ("random-head", "random-no-skip"))
    assert_close(with_skip(z) - without(z), C_SKIP * SIGMA_MAX * z)
    assert without(z).std() > 1e-3
    for found, given in zip(with_skip.parameters(), without.parameters(), strict=True):
        assert torch.equal(found, given)


def test_a_random_head_is_a_network_inside_edms_preconditioning():
    z = noise()
    network = build_network(SMALL, 2, seed=0).requires_grad_(False)
    fresh = start("random-head").state_dict()
    network.load_state_dict({name.removeprefix("generator.network."): value for name, value in fresh.items()})
    total = torch.tensor(SIGMA_MAX**2 + 0.25)
    label = torch.tensor(SIGMA_MAX).log().div(4).expand(200, 1)
    inside = SIGMA_MAX * 0.5 / total.sqrt() * network(SIGMA_MAX * z / total.sqrt(), network.noise_features(label))
    assert_close(start("random-no-skip")(z), inside)
    assert_close(start("random-head")(z), inside + C_SKIP * SIGMA_MAX * z)


def test_edm_default_keeps_fresh_hidden_layers():
    silenced, fresh = start("edm-default").state_dict(), start("random-head").state_dict()
    for name, value in silenced.items():
        if "output" in name:
            assert not value.any() and fresh[name].any()
        else:
            assert torch.equal(value, fresh[name])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind):
    z = noise()
    torch.manual_seed(1)
    first = start(kind)(z)
    torch.manual_seed(2)
    assert torch.equal(start(kind)(z), first)


@pytest.mark.parametrize(("kind", "random"), [(k, k.startswith("random")) for k in KINDS])
def test_another_seed_gives_another_map_where_weights_are_fresh(kind, random):
    z = noise()
    assert torch.equal(start(kind, seed=0)(z), start(kind, seed=1)(z)) != random


def test_the_five_starts_are_five_maps():
    """The closest two differ by c_skip·σ_max = 0.003 per unit of noise: at this σ_max the skip is nearly nothing."""
    outputs = torch.stack([start(kind)(noise()).flatten() for kind in KINDS])
    distances = torch.cdist(outputs, outputs) / noise().norm()
    assert (distances + torch.eye(5)).min().item() == pytest.approx(C_SKIP * SIGMA_MAX, rel=1e-3)


def test_initialising_from_the_teacher_leaves_the_teacher_alone():
    frozen = teacher()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    spec = StudentSpec(teacher=TEACHER, network=SMALL, batch=4)
    student = build_student(spec)
    initialise(student, spec, frozen, lambda turn=None: None)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert all(torch.equal(frozen.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in student.parameters())


# kd-rotated


@pytest.fixture(scope="module")
def regressed():
    recipe = {"regression_pairs": 1024}
    return start("kd-rotated", init={"regression_steps": 800}, batch=128, recipe=recipe)


def test_kd_rotated_starts_at_the_turned_teacher_map(regressed):
    """On noise that the regression never saw: close to T∘Q, far from T, though its network takes z unrotated."""
    z = noise(500)
    rotation = torch.from_numpy(haar_rotation(2)).float()
    straight, turned = (teacher_map(teacher(), noise, NoiseRange(), 32) for noise in (z, z @ rotation.T))
    assert regressed.rotation is None

    def error(target):
        return (((regressed(z) - target) ** 2).mean() / target.var()).item()

    assert error(turned) < 0.01
    assert error(straight) > 20 * error(turned)
    before = ((start("teacher")(z) - turned) ** 2).mean() / turned.var()
    assert error(turned) < before / 10


def test_a_network_of_another_shape_starts_at_the_teachers_map():
    """Regressed onto T: nearer the more units it has, and far from T∘Q and from its own fresh weights' map."""
    z = noise(500)
    rotation = torch.from_numpy(haar_rotation(2)).float()
    straight, turned = (teacher_map(teacher(), noise, NoiseRange(), 32) for noise in (z, z @ rotation.T))
    found = {}
    for width in (2, 24):
        network = SMALL.model_copy(update={"width": width})
        init = {"regression_steps": 800}
        student = start("kd", network=network, init=init, batch=128, recipe={"regression_pairs": 1024})
        assert sum(p.numel() for p in student.parameters()) != sum(p.numel() for p in teacher().parameters())
        found[width] = [(((student(z) - target) ** 2).mean() / target.var()).item() for target in (straight, turned)]
    assert found[24][0] < 0.01 < found[2][0]
    assert found[24][1] > 20 * found[24][0]


def test_kd_one_step_starts_at_the_map_of_the_teachers_start_in_other_weights():
    """Near D(σ_max·z, σ_max) and far from T, which has a spread of its own; its weights are not the teacher's."""
    z = noise(500)
    recipe, init = {"regression_pairs": 1024}, {"regression_steps": 800}
    student = start("kd-one-step", init=init, batch=128, recipe=recipe)
    one_step, map_ = answer(z), teacher_map(teacher(), z, NoiseRange(), 32)

    def error(target):
        return (((student(z) - target) ** 2).mean() / target.var()).item()

    assert error(one_step) < 0.01
    assert error(map_) > 20 * error(one_step)
    mine, others = student.state_dict(), start("random-head").state_dict()
    for name, value in teacher().state_dict().items():
        if name.endswith("weight"):
            own = mine[f"generator.{name}"]
            assert (own - value).norm() > (own - others[f"generator.{name}"]).norm()


def test_kd_rotated_starts_from_the_teachers_weights_not_fresh_ones():
    """After one step of the regression, Adam has moved no weight by more than its rate."""
    student = start("kd-rotated", init={"regression_steps": 1}, recipe={"regression_pairs": 8})
    for name, value in teacher().state_dict().items():
        moved = (student.state_dict()[f"generator.{name}"] - value).abs().max().item()
        assert 0 < moved < 1.01e-3


def test_a_pool_holds_noises_and_where_the_teachers_flow_takes_them():
    rotation = rotation_of(StudentSpec(teacher=TEACHER, network=SMALL), torch.float64)
    pools = [
        make_pair_pool(teacher(torch.float64), NoiseRange(), (50, 2), 9, torch.float64, turn)
        for turn in (None, lambda z: z @ rotation.T)
    ]
    assert torch.equal(pools[0].z, pools[1].z)
    for pool, z in zip(pools, (pools[0].z, pools[0].z @ rotation.T), strict=True):
        assert_close(pool.target, teacher_map(teacher(torch.float64), z, NoiseRange(), 32))
        assert not pool.target.requires_grad
    drawn, targets = pools[0].draw(400, Stream(0))
    rows = (drawn[:, None] == pools[0].z).all(2).int().argmax(1)
    assert len(rows.unique()) == 50
    assert torch.equal(drawn, pools[0].z[rows]) and torch.equal(targets, pools[0].target[rows])


def test_the_pool_shares_no_noise_with_the_bank():
    """A student judged on the noises that it was regressed onto would look better than it is."""
    bank = torch.cat([torch.from_numpy(noise_rows(2, 500, 0, purpose)) for purpose in ("paired", "held_out")])
    seed = derive_seed(0, "student", "regression-pool")
    pool = make_pair_pool(lambda x, sigma: x, NoiseRange(), (500, 2), seed, torch.float32)
    assert torch.cdist(bank, pool.z).min() > 0


# Starts that are partly the teacher


LAYERS = [("noise_embedding", "input"), ("blocks.0",), ("blocks.1",), ("output",)]


def weights(kind, **init):
    """The parameters of a start by their names in the network."""
    parameters = start(kind, init=init, dtype="float64").named_parameters()
    return {name.removeprefix("generator.network."): value for name, value in parameters}


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 0), (0, 1), (1, 2), (3, 0), (0, 4), (2, 2)])
def test_a_partial_start_is_the_teacher_but_for_the_fresh_layers_of_a_random_head(first, last):
    found = weights("partial", fresh_first=first, fresh_last=last)
    fresh, copied = weights("random-head"), weights("teacher")
    are_fresh = [name for layer in LAYERS[:first] + LAYERS[len(LAYERS) - last :] for name in layer]
    for name, value in found.items():
        expected = fresh if name.rpartition(".")[0] in are_fresh else copied
        assert torch.equal(value, expected[name]), name
        assert not torch.equal(fresh[name], copied[name])


@pytest.mark.parametrize("alpha", [0, 0.25, 0.5, 0.9, 1])
def test_an_interpolated_start_lies_on_the_line_from_random_to_teacher_and_at_its_ends(alpha):
    found, fresh, copied = weights("interpolated", alpha=alpha), weights("random-head"), weights("teacher")
    for name, value in found.items():
        exact = 0 if alpha in (0, 1) else 1e-14
        assert_close(value, alpha * copied[name] + (1 - alpha) * fresh[name], rtol=exact, atol=exact)


def test_layers_of_a_partial_start_are_at_most_those_of_the_network():
    with pytest.raises(ValueError, match="must be at most 4, the layers of the network, got 3"):
        StudentSpec(teacher=TEACHER, network=SMALL, init={"kind": "partial", "fresh_first": 3, "fresh_last": 2})
    with pytest.raises(ValueError, match="alpha is for the kind 'interpolated', not for 'teacher'"):
        StudentSpec(teacher=TEACHER, network=SMALL, init={"kind": "teacher", "alpha": 0.5})


# Scale


@pytest.mark.parametrize("kind", ["teacher", "rotated", "random-head", "random-no-skip", "kd-rotated"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_scaled_start_is_so_many_times_the_start_but_for_its_skip(kind, factor):
    z = noise(dtype=torch.float64)
    skip = C_SKIP * SIGMA_MAX * z if kind != "random-no-skip" else torch.zeros_like(z)
    if kind == "rotated":
        skip = skip @ torch.from_numpy(haar_rotation(2)).T
    init = {"regression_steps": 3} if kind == "kd-rotated" else {}
    usual, scaled = (start(kind, dtype="float64", init=init | given)(z) for given in ({}, {"scale": factor}))
    assert (usual - skip).abs().max() > 0.01
    assert_close(scaled - skip, factor * (usual - skip))


def test_a_scaled_linear_start_is_so_many_times_the_matrix():
    exact = TeacherSpec(data=Gaussian(dim=2, n_train=4, n_held_out=1), score={"kind": "exact"})

    def matrix(**init):
        recipe = {"fake": "oracle"}
        spec = StudentSpec(teacher=exact, network={"kind": "linear"}, init=init, recipe=recipe, generator_steps=1)
        return distil(spec, load_teacher(exact, prepare(exact.data)[0]))[0]["generator.matrix"][0]

    assert_close(matrix(scale=3), 3 * matrix())


def test_particles_start_where_a_scaled_network_would():
    bank = NoiseBankSpec(dim=2, n_paired=6, n_held_out=4, n_reference_sets=2)
    paired = noise(6)

    def particles(**init):
        network = {"kind": "particles", "count": 8}
        given = {"teacher": TEACHER, "network": network, "bank": bank, "generator_steps": 1, "batch": 4}
        snapshots, _ = distil(StudentSpec(**given, init=init), teacher(), paired=paired)
        return snapshots["particles"][0][:6]

    skip = C_SKIP * SIGMA_MAX * paired
    assert_close(particles(scale=2) - skip, 2 * (particles() - skip))
