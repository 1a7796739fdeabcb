"""The adversarial term: its losses in closed form, its gradients by autograd, and whole trainings written again."""

from __future__ import annotations

import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from dmdpipe.artifacts.stages import STAGES
from dmdpipe.copying.distribution import energy_distance, fixed_projections, sample_set
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.adversarial import (
    Adversary,
    build_head,
    discriminator_gradients,
    discriminator_loss,
    generator_loss,
    hidden_state,
)
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.loop import HISTORY, distil
from dmdpipe.distill.student import build_student
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import build_network
from dmdpipe.seeds import derive_seed
from dmdpipe.specs.data import Moons
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import Recipe, StudentSpec

SMALL = MLP(width=8, depth=3, embedding=4)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
DATA = torch.tensor([1.0, -0.5]) + 0.3 * Stream(5).normal(64, 2)
ZERO = torch.zeros(4, dtype=torch.float64)


def teacher(dtype=torch.float64):
    tensors = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
    return load_teacher(TEACHER, tensors, dtype)


def student_spec(**fields):
    fields = {"batch": 16, "generator_steps": 4, "snapshots": 50, "dtype": "float64"} | fields
    return StudentSpec(teacher=TEACHER, network=SMALL, **fields)


def adversary(name="dmd2-gan", fake=None, **fields):
    spec = student_spec(recipe={"name": name, **fields})
    return Adversary(spec, teacher(), fake, DATA, RandomBatches(spec, 2))


# The losses


def test_the_losses_are_the_cross_entropies_of_a_classifier():
    """Softplus, written out: −ln sigmoid(l) for what should pass as data, −ln(1 − sigmoid(l)) for what should not."""
    real, fake = 3 * Stream(1).normal(2, 9).double()
    expected = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())
    assert_close(discriminator_loss(real, fake), expected)
    assert_close(generator_loss(fake)[0], -torch.sigmoid(fake).log().mean())


def test_the_gradients_are_those_of_the_losses():
    real, fake = (3 * Stream(1).normal(2, 9).double()).requires_grad_(True).unbind()
    loss, found = discriminator_loss(real, fake), discriminator_gradients(real, fake)
    for gradient, expected in zip(found, torch.autograd.grad(loss, (real, fake)), strict=True):
        assert_close(gradient.detach(), expected)
    loss, gradient = generator_loss(fake)
    assert_close(gradient.detach(), *torch.autograd.grad(loss, fake))


def test_large_logits_neither_overflow_nor_vanish_where_they_are_wrong():
    loss, gradient = generator_loss(torch.tensor([-1e4, 1e4]))
    assert (loss.item(), gradient.tolist()) == (5e3, [-0.5, 0.0])
    logits = torch.tensor([-1e4]), torch.tensor([1e4])
    real, fake = discriminator_gradients(*logits)
    assert (discriminator_loss(*logits).item(), real.item(), fake.item()) == (2e4, -1, 1)


def test_the_best_logit_is_the_log_ratio_of_densities():
    """Two Gaussians by quadrature: no other logit function does better, and the loss there is 2·ln 2 − 2·JS."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    p_real, p_fake = (torch.distributions.Normal(mean, 1.5).log_prob(x).exp().double() for mean in (1.0, -0.5))
    step = x[1] - x[0]
    best = (p_real / p_fake).log()
    assert_close(best, 1.5 * (x - 0.25) / 1.5**2, rtol=1e-5, atol=1e-6)  # linear, for equal spreads

    def mean_loss(logits):
        return ((p_real * F.softplus(-logits) + p_fake * F.softplus(logits)).sum() * step).item()

    def slope(logits, direction):
        """The mean of the published gradients along a change of the logit function."""
        to_real, to_fake = discriminator_gradients(logits, logits)
        return ((p_real * to_real + p_fake * to_fake) * direction).sum().item() * step.item() * len(x)

    middle = (p_real + p_fake) / 2
    divergence = sum((p * (p / middle).log()).sum().item() * step.item() / 2 for p in (p_real, p_fake))
    assert mean_loss(best) == pytest.approx(2 * math.log(2) - 2 * divergence, rel=1e-6)
    for direction in (torch.ones_like(x), x, x.sin()):
        assert slope(best, direction) == pytest.approx(0, abs=1e-6)
        assert mean_loss(best + 0.1 * direction) > mean_loss(best) < mean_loss(best - 0.1 * direction)
    assert slope(0 * best, x) < -0.5  # a planted wrong one: the logit should grow with x


def test_nothing_pulls_where_samples_are_data():
    """At equal distributions the log ratio is 0: the loss is 2·ln 2, its gradients cancel, whatever the features."""
    to_real, to_fake = discriminator_gradients(ZERO, ZERO)
    assert discriminator_loss(ZERO, ZERO).item() == pytest.approx(2 * math.log(2))
    assert_close(to_real + to_fake, ZERO)


def test_a_student_moves_to_where_the_logit_is_larger():
    """The sign: with the logit l(x) = x the descent direction −∂loss/∂x is positive, and stronger where l is low."""
    _, gradient = generator_loss(torch.tensor([-2.0, 0.0, 2.0]))
    assert (gradient < 0).all() and gradient[0] < gradient[1] < gradient[2]


# The discriminator's network


def test_the_hidden_state_written_out():
    """Of three blocks the first two: h + silu(W·h + b + e), from W·c_in·x + b, with e = silu(W·features + b)."""
    denoiser, x = teacher(), Stream(2).normal(6, 2).double()
    network, sigma = denoiser.network, Stream(3).normal(6, 1).double().exp()

    def silu(a):
        return a / (1 + (-a).exp())

    def affine(layer, h):
        return torch.einsum("oi,bi->bo", layer.weight, h) + layer.bias

    e = silu(affine(network.noise_embedding, network.noise_features(sigma.log() / 4)))
    h = affine(network.input, x / (sigma.square() + 0.25).sqrt())
    for block in network.blocks[:2]:
        h = h + silu(affine(block, h) + e)
    assert_close(hidden_state(denoiser, x, sigma), h)


def test_the_hidden_state_is_that_after_the_middle_block():
    """Depth 3: what follows the second block doesn't count, what stands before does."""
    denoiser, x, sigma = teacher(), Stream(2).normal(6, 2).double(), torch.ones(6, 1, dtype=torch.float64)
    before = hidden_state(denoiser, x, sigma)
    assert before.shape == (6, 8)
    with torch.no_grad():
        denoiser.network.blocks[2].weight.add_(1)
        denoiser.network.output.weight.add_(1)
        assert torch.equal(hidden_state(denoiser, x, sigma), before)
        denoiser.network.blocks[1].weight.add_(1)
        assert not torch.allclose(hidden_state(denoiser, x, sigma), before)


def test_the_heads_weights_follow_from_its_seed_alone():
    one, again, other = build_head(8, 1), None, build_head(8, 2)
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    again = build_head(8, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for left, right, unlike in zip(*(head.state_dict().values() for head in (one, again, other)), strict=True):
        assert torch.equal(left, right)
        assert left.ndim == 1 or not torch.equal(left, unlike)
    named = build_head(8, derive_seed(0, "student", "discriminator")).double()
    for left, right in zip(named.parameters(), adversary().head.parameters(), strict=True):
        assert torch.equal(left, right)


def written_logits(body, head, x, draws):
    """The logits from their definition: the first two of three blocks, EDM's c_in and noise label, then the head."""
    rows, sigma, noise = draws
    network = body.network
    embedding = F.silu(network.noise_embedding(network.noise_features(sigma.log() / 4)))
    h = network.input((x + sigma * noise) / (sigma**2 + 0.25).sqrt())
    for block in list(network.blocks)[:2]:
        h = h + F.silu(block(h) + embedding)
    return head(h)[:, 0]


@pytest.mark.parametrize("name", ["dmd2-gan", "fastgen-gan"])
def test_the_gradient_at_the_samples_is_autograds_and_touches_no_parameter(name):
    one, other = adversary(name, adversarial_weight=0.7), adversary(name)
    x = Stream(2).normal(16, 2).double().requires_grad_(True)
    loss, gradient = one.gradient(x.detach())
    expected = F.softplus(-written_logits(other.body, other.head, x, other.batches.diffusion("adversarial"))).mean()
    assert_close(loss, expected.detach())
    assert_close(gradient, 0.7 * torch.autograd.grad(expected, x)[0])
    assert all(parameter.grad is None for parameter in [*one.body.parameters(), *one.head.parameters()])


def test_noise_levels_are_those_of_the_recipe_and_real_rows_are_drawn_from_all_data():
    one = adversary("fastgen-gan")
    assert one.batches.ranges["adversarial"] == (2, 999)
    assert adversary("dmd2-gan").batches.ranges["adversarial"] == (0, 1000)
    seen = []
    one.data = torch.arange(64, dtype=torch.float64)[:, None].expand(64, 2)
    noised = one._noised
    one._noised = lambda real, fake: seen.append(real[0][:, 0]) or noised(real, fake)
    for _ in range(40):
        one.learn(torch.zeros(16, 2, dtype=torch.float64))
    assert set(torch.cat(seen).tolist()) == set(range(64))


# Whole trainings, rewritten with torch.optim


def written_training(spec):
    """DMD2's loop with its classifier, and FastGen's, from their descriptions; draws and first weights are ours."""
    recipe, batches, frozen = spec.recipe, RandomBatches(spec, 2), teacher()
    of_fastgen = recipe.name == "fastgen-gan"
    student, fake = copy.deepcopy(frozen).requires_grad_(True), copy.deepcopy(frozen).requires_grad_(True)
    head = build_head(8, derive_seed(spec.seed, "student", "discriminator")).double()
    body = frozen if of_fastgen else fake
    guidance = [*fake.parameters(), *head.parameters()]
    optimisers = [torch.optim.AdamW(group, weight_decay=0.01) for group in (list(student.parameters()), guidance)]
    sigma_max, data = torch.full((spec.batch, 1), 80.0, dtype=torch.float64), DATA.double()

    def step(optimiser, loss, rate):
        optimiser.zero_grad()  # also what the generator's turn left in the guidance
        loss.backward()
        (group,) = optimiser.param_groups
        nn.utils.clip_grad_norm_(group["params"], 10.0)
        group["lr"] = rate
        optimiser.step()

    for iteration in range(5 * (spec.generator_steps - 1) + 1):
        x = student(80.0 * batches.latent(), sigma_max)
        generator_turn = iteration % 5 == 0
        if generator_turn:
            loss = 0
            if recipe.dm_weight:
                _, sigma, noise = batches.diffusion("dm")
                with torch.no_grad():
                    real, false = (net(x + sigma * noise, sigma) for net in (frozen, fake))
                    size = (x - real).abs().mean(dim=1, keepdim=True) + (1e-6 if of_fastgen else 0)
                    target = x - (false - real) / size
                loss = 0.5 * F.mse_loss(x, target)
            logits = written_logits(body, head, x, batches.diffusion("adversarial"))
            step(optimisers[0], loss + 3e-3 * F.softplus(-logits).mean(), recipe.generator.learning_rate)
        if not (of_fastgen and generator_turn):
            x, loss = x.detach(), 0
            if recipe.dm_weight:
                _, sigma, noise = batches.diffusion("fake")
                weight = 1 if of_fastgen else 1 / sigma**2 + 4
                loss = (weight * (fake(x + sigma * noise, sigma) - x) ** 2).mean()
            rows = batches.streams["adversarial-data"].integers(0, 64, spec.batch)
            real = written_logits(body, head, data[rows], batches.diffusion("adversarial"))
            false = written_logits(body, head, x, batches.diffusion("adversarial"))
            verdict = F.softplus(false).mean() + F.softplus(-real).mean()
            step(optimisers[1], loss + (1 if of_fastgen else 1e-2) * verdict, recipe.fake_score.learning_rate)
    return student.state_dict()


@pytest.mark.parametrize("name", ["dmd2-gan", "gan", "fastgen-gan"])
def test_a_training_ends_where_the_written_loop_ends(name):
    quick = {"warmup": 0, "learning_rate": 2e-3}
    spec = student_spec(recipe={"name": name, "generator": quick, "fake_score": quick, "ema": None}, generator_steps=6)
    snapshots, history = distil(spec, teacher(), data=DATA)
    for key, value in written_training(spec).items():
        assert_close(snapshots[f"generator.{key}"][-1], value, rtol=1e-6, atol=1e-9)
    columns = [HISTORY.index(one) for one in ("adversarial_gradient", "adversarial_loss")]
    assert (history[:, columns] > 0).all()
    of_fakes = history[:-1, HISTORY.index("discriminator_loss")]
    assert ((of_fakes > 0) & (of_fakes < 3)).all()
    if name == "gan":
        assert torch.isnan(history[:, [HISTORY.index("dm_gradient"), HISTORY.index("fake_loss")]]).all()


def test_at_weight_0_the_bytes_are_those_without_the_term():
    """Neither the discriminator's keys nor the data that it would read can be felt."""
    keys = {"discriminator": "teacher", "discriminator_weight": 5.0, "adversarial_first": 3, "adversarial_last": 30}
    runs = [
        distil(student_spec(recipe={"name": "dmd2", **given}, dtype="float32"), teacher(torch.float32), data=data)
        for given, data in (({}, None), (keys, DATA))
    ]
    for name, value in runs[0][0].items():
        assert value.numpy().tobytes() == runs[1][0][name].numpy().tobytes(), name
    assert runs[0][1].numpy().tobytes() == runs[1][1].numpy().tobytes()
    assert torch.isnan(runs[0][1][:, HISTORY.index("adversarial_gradient") :]).all()


def test_the_logged_gradient_is_in_the_units_of_the_distribution_matching_one():
    """Whose loss is a mean over all entries: its gradient there is g/x.numel()."""
    spec = student_spec(recipe={"name": "gan", "adversarial_weight": 0.5}, generator_steps=1)
    _, history = distil(spec, teacher(), data=DATA)
    again = adversary("gan", adversarial_weight=0.5)
    x = teacher()(80 * again.batches.latent(), torch.full((1, 1), 80.0, dtype=torch.float64))
    _, gradient = again.gradient(x)
    expected = x.numel() * gradient.square().mean().sqrt().item()
    assert history[0, HISTORY.index("adversarial_gradient")].item() == pytest.approx(expected)


def test_only_students_with_the_term_depend_on_its_code():
    for name in get_args(Recipe.model_fields["name"].annotation):
        found = STAGES["student"].code(student_spec(recipe={"name": name})).modules
        assert ("dmdpipe.distill.adversarial" in found) == name.endswith("gan")


def test_a_term_without_data_is_an_error():
    with pytest.raises(ValueError, match="needs the data"):
        distil(student_spec(recipe={"name": "gan"}), teacher())


@pytest.mark.parametrize("discriminator", ["fake", "teacher"])
def test_a_gan_alone_brings_a_student_to_the_data(discriminator):
    """From far away and turned: the energy distance falls to a tenth, and the discriminator ends near a coin's toss."""
    generator, fake_score = ({"warmup": 0, "learning_rate": rate, "beta1": 0.5} for rate in (1e-3, 5e-3))
    recipe = {"name": "gan", "discriminator": discriminator, "generator": generator, "fake_score": fake_score}
    spec = student_spec(
        recipe=recipe, init={"kind": "random-head"}, generator_steps=300, batch=64, dtype="float32", snapshots=3
    )
    snapshots, history = distil(spec, teacher(torch.float32), data=DATA)
    student, z = build_student(spec), Stream(9).normal(256, 2)
    projections = fixed_projections(2, 4, 0)
    distances = []
    for k in (0, -1):
        student.load_state_dict({name: value[k] for name, value in snapshots.items() if name != "generator_step"})
        with torch.no_grad():
            sets = [sample_set(points.double().numpy(), projections) for points in (student(z), DATA)]
        distances.append(energy_distance(*sets))
    assert distances[1] < 0.1 * distances[0]
    losses = history[:, HISTORY.index("discriminator_loss")]
    assert losses.min() < 0.8 * 2 * math.log(2)  # it did tell them apart
    assert losses[-20:].mean() == pytest.approx(2 * math.log(2), rel=0.05)
