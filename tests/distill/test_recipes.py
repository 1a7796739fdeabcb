"""The loop against the published recipes: who trains when, on what, at which noise levels and rates."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from dmdpipe.diffusion.schedule import karras_grid
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.dmd import dm_gradient
from dmdpipe.distill.loop import HISTORY, Distillation, distil, distil_student, learning_rate, snapshot_steps
from dmdpipe.distill.regression import PairPool, make_pair_pool
from dmdpipe.distill.student import build_student
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.specs.data import Moons
from dmdpipe.specs.diffusion import NoiseRange, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.student import Optimiser, Recipe, StudentSpec

SMALL = MLP(width=8, depth=2, embedding=4)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
STILL = {"warmup": 0, "learning_rate": 1e-2}


def teacher_tensors():
    return {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}


def teacher(dtype=torch.float64):
    return load_teacher(TEACHER, teacher_tensors(), dtype)


def student_spec(**fields):
    fields = {"batch": 16, "generator_steps": 4, "snapshots": 50, "dtype": "float64"} | fields
    return StudentSpec(teacher=TEACHER, network=SMALL, **fields)


# The recipe's numbers


def test_dmd2s_numbers_are_the_published_ones():
    recipe = Recipe(name="dmd2")
    assert (recipe.generator_every, recipe.fake_trains_with_generator) == (5, True)
    assert (recipe.grid_size, recipe.dm_first, recipe.dm_last, recipe.fake_first, recipe.fake_last) == (
        1000, 20, 980, 0, 999,
    )  # fmt: skip
    assert (recipe.normalise, recipe.normaliser_offset, recipe.normaliser_min) == (True, 0, 0)
    assert (recipe.fake_weighting, recipe.ema, recipe.dm_weight, recipe.regression_weight) == ("edm", None, 1, 0)
    for optimiser in (recipe.generator, recipe.fake_score):
        assert (optimiser.kind, optimiser.beta1, optimiser.beta2, optimiser.weight_decay) == ("adamw", 0.9, 0.999, 0.01)
        assert (optimiser.warmup, optimiser.clip, optimiser.decay) == (500, 10, "constant")


def test_fastgens_switch_changes_what_the_two_implementations_differ_in():
    recipe = Recipe(name="fastgen")
    assert (recipe.generator_every, recipe.fake_trains_with_generator) == (5, False)
    assert (recipe.dm_first, recipe.dm_last, recipe.fake_first, recipe.fake_last) == (2, 998, 2, 998)
    assert (recipe.normaliser_offset, recipe.fake_weighting, recipe.ema) == (1e-6, "none", 0.9996)


# Noise levels


@pytest.mark.parametrize(("name", "dm", "fake"), [("dmd2", (20, 980), (0, 999)), ("fastgen", (2, 998), (2, 998))])
def test_noise_levels_are_uniform_over_the_published_indices_ends_included(name, dm, fake):
    batches = RandomBatches(student_spec(recipe={"name": name}, batch=100_000), 2)
    grid = karras_grid(NoiseRange(), 1000)
    for purpose, (first, last) in (("dm", dm), ("fake", fake)):
        index, sigma, _ = batches.diffusion(purpose)
        assert torch.equal(grid[index], sigma.flatten())
        counts = np.bincount(index.numpy(), minlength=1000)
        assert np.flatnonzero(counts).tolist() == list(range(first, last + 1))
        expected = 100_000 / (last - first + 1)
        chi_squared = ((counts[first : last + 1] - expected) ** 2 / expected).sum()
        freedom = last - first
        assert abs(chi_squared - freedom) < 5 * math.sqrt(2 * freedom)


def test_every_sample_draws_its_own_noise_from_its_purposes_own_stream():
    spec = student_spec(batch=4000)
    one, other = RandomBatches(spec, 3), RandomBatches(spec, 3)
    other.latent(), other.diffusion("fake")
    _, sigma, noise = one.diffusion("dm")
    again = other.diffusion("dm")
    assert torch.equal(sigma, again.sigma) and torch.equal(noise, again.noise)
    assert sigma.shape == (4000, 1) and len(sigma.unique()) > 900
    drawn = torch.cat([one.latent(), noise, one.diffusion("fake").noise], dim=1)
    assert (drawn.mean(0).abs() < 5 / 4000**0.5).all()
    assert (torch.corrcoef(drawn.T) - torch.eye(9)).abs().max() < 5 / 4000**0.5
    assert (drawn.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    reseeded = RandomBatches(student_spec(batch=4000, seed=1), 3)
    assert not torch.equal(reseeded.latent(), RandomBatches(spec, 3).latent())


@pytest.mark.parametrize(("batch", "dim"), [(16, 3), (64, 2), (5, 1)])
def test_noise_for_several_batches_is_that_of_one_after_the_other(batch, dim):
    """So nothing depends on how far ahead the loop draws."""
    one, other = (RandomBatches(student_spec(batch=batch), dim) for _ in range(2))
    assert torch.equal(one.latent(4), torch.cat([other.latent() for _ in range(4)]))
    assert torch.equal(one.latent(), other.latent())


# The schedule of rates


def constant_with_warmup(step, warmup):
    """The lambda of ``diffusers.optimization``, which DMD2 steps once per iteration."""
    return float(step) / float(max(1, warmup)) if step < warmup else 1.0


@pytest.mark.parametrize("warmup", [0, 1, 7, 500])
def test_the_warm_up_is_the_published_schedule(warmup):
    optimiser = Optimiser(learning_rate=3e-5, warmup=warmup)
    for iteration in (0, 1, 3, 6, 7, 8, 499, 500, 501, 5000):
        expected = 3e-5 * constant_with_warmup(iteration, warmup)
        assert learning_rate(optimiser, iteration, 10_000) == pytest.approx(expected, abs=1e-20)


def test_the_cosine_falls_from_the_full_rate_to_zero():
    optimiser = Optimiser(learning_rate=2.0, warmup=0, decay="cosine")
    rates = [learning_rate(optimiser, i, 100) for i in (0, 25, 50, 75, 100)]
    assert rates == pytest.approx([2, 2 * (0.5 + 0.5**1.5), 1, 2 * (0.5 - 0.5**1.5), 0], abs=1e-12)
    warming = Optimiser(learning_rate=2.0, warmup=50, decay="cosine")
    assert learning_rate(warming, 25, 100) == pytest.approx(0.5 * rates[1])


# The order of events


class Watched(nn.Module):
    """A linear map of the noise that tells when it is called, and with gradients or without."""

    def watch(self, name, events, seen):
        self.name, self.events, self.seen = name, events, seen
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
        return self

    def forward(self, x, given=None):
        self.events.append(f"{self.name} {'learns' if torch.is_grad_enabled() else 'answers'}")
        answer = x * self.scale
        self.seen[self.name] = (x.detach().clone(), answer.detach().clone())
        return answer


class WatchedDenoiser(Watched, Denoiser):
    """The same as a denoiser: with no MLP inside, all that is asked of it comes through ``forward``."""

    def __init__(self):
        Denoiser.__init__(self, nn.Identity())


def watched(recipe, pool=None, iterations=1000):
    """Return a loop whose parts write down what happens, the events, and the last inputs and outputs by name."""
    events, seen = [], {}
    batches = RandomBatches(student_spec(recipe=recipe.model_dump(), dtype="float32"), 2)
    draw_latent, draw_diffusion = batches.latent, batches.diffusion

    def latent(count=1):
        events.append(f"draw {count} z")
        return draw_latent(count)

    def diffusion(purpose):
        events.append(f"draw {purpose}")
        seen[purpose] = draw_diffusion(purpose)
        return seen[purpose]

    batches.latent, batches.diffusion = latent, diffusion
    student = Watched().watch("student", events, seen)
    fake = WatchedDenoiser().watch("fake", events, seen) if recipe.dm_weight else None
    frozen = WatchedDenoiser().watch("teacher", events, seen)
    loop = Distillation(recipe, student, frozen, fake, batches, pool, iterations)
    for name, optimiser in (("student", loop.student_optimiser), ("fake", loop.fake_optimiser)):
        if optimiser is not None:
            report(optimiser, name, events)
    return loop, events, seen


def report(optimiser, name, events):
    step = optimiser.step

    def reported(rate):
        events.append(f"{name} steps")
        return step(rate)

    optimiser.step = reported


GENERATOR_TURN = ["draw 1 z", "student learns", "draw dm", "teacher answers", "fake answers", "student steps"]
FAKE_STEP = ["draw fake", "fake learns", "fake steps"]
ALL_SAMPLES = ["draw 4 z", "student answers"]


@pytest.mark.parametrize(("name", "fakes"), [("dmd2", 5), ("fastgen", 4)])
def test_iterations_run_in_the_published_order(name, fakes):
    """Of eleven iterations the generator steps in the first, the sixth and the last."""
    loop, events, _ = watched(Recipe(name=name), iterations=11)
    for generator_step in range(2):
        events.clear()
        loop.advance(range(generator_step, generator_step + 1))
        assert events == [*GENERATOR_TURN, *ALL_SAMPLES, *FAKE_STEP * fakes], generator_step
    events.clear()
    loop.advance(range(2, 3))
    assert events == [*GENERATOR_TURN, *FAKE_STEP * (fakes - 4)]


def test_in_dmd2_the_fake_score_trains_on_the_batch_from_before_the_generators_step():
    """Its input is S(z) + σε with draws of its own, and S(z) is older than the step that the generator just took."""
    loop, _, seen = watched(Recipe(generator=STILL, fake_score=STILL), iterations=1)
    with torch.no_grad():
        loop.fake.scale.mul_(2)  # a fake score that equals the teacher would leave the generator where it is
    inputs = []
    forward = loop.fake.forward
    loop.fake.forward = lambda x, given: inputs.append((torch.is_grad_enabled(), x.clone(), given)) or forward(x, given)
    draws = {}
    diffusion = loop.batches.diffusion
    loop.batches.diffusion = lambda purpose: draws.setdefault(purpose, diffusion(purpose))
    before = loop.student.scale.detach().clone()
    loop.advance(range(0, 1))
    z, x = seen["student"]
    assert_close(x, z * before)
    assert not torch.allclose(x, z * loop.student.scale)
    for (learns, noisy, given), purpose in zip(inputs, ("dm", "fake"), strict=True):
        _, sigma, noise = draws[purpose]
        assert learns == (purpose == "fake")
        assert_close(noisy, x + sigma * noise)
        told = given.looked_up()
        assert_close(told.features, sigma.log() / 4)
        assert_close(told.c_skip, 0.25 / (sigma**2 + 0.25))
    assert_close(seen["teacher"][0], inputs[0][1])


def test_in_fastgen_only_the_one_whose_turn_it_is_moves():
    loop, _, _ = watched(Recipe(name="fastgen", generator=STILL, fake_score=STILL), iterations=6)
    teacher_before = loop.teacher.scale.detach().clone()
    with torch.no_grad():
        loop.fake.scale.mul_(2)
    takes_step = loop.student_optimiser.step
    moved = []
    for generator_step, still in ((1, False), (0, True)):  # the last one, and one that fake-score steps follow
        loop.student_optimiser.step = (lambda rate: 0.0) if still else takes_step
        before = {name: getattr(loop, name).scale.detach().clone() for name in ("student", "fake")}
        loop.advance(range(generator_step, generator_step + 1))
        moved.append({name for name in before if not torch.equal(getattr(loop, name).scale, before[name])})
    assert moved == [{"student"}, {"fake"}]
    assert torch.equal(loop.teacher.scale, teacher_before)
    assert loop.teacher.scale.grad is None


@pytest.mark.parametrize(("name", "fakes"), [("dmd2", lambda g: 5 * (g - 1) + 1), ("fastgen", lambda g: 4 * (g - 1))])
@pytest.mark.parametrize("generator_steps", [1, 4])
def test_a_distillation_counts_generator_steps(monkeypatch, name, fakes, generator_steps):
    """Five updates of the fake score for each one of the generator (FastGen: four), the last one the generator's."""
    steps = []
    original = Distillation.advance

    def advance(loop, generator_step):
        if not steps:
            report(loop.student_optimiser, "student", steps)
            report(loop.fake_optimiser, "fake", steps)
            steps.append("start")
        return original(loop, generator_step)

    monkeypatch.setattr(Distillation, "advance", advance)
    distil(student_spec(recipe={"name": name}, generator_steps=generator_steps), teacher())
    assert steps.count("student steps") == generator_steps
    assert steps.count("fake steps") == fakes(generator_steps)


def test_rates_follow_iterations_not_generator_steps(monkeypatch):
    from dmdpipe.diffusion.optimiser import FlatOptimiser

    rates = []
    original = FlatOptimiser.step
    monkeypatch.setattr(
        FlatOptimiser, "step", lambda self, rate: rates.append((id(self), rate)) or original(self, rate)
    )
    recipe = {"generator": {"learning_rate": 1e-4, "warmup": 8}, "fake_score": {"learning_rate": 1e-3, "warmup": 8}}
    distil(student_spec(recipe=recipe, generator_steps=3), teacher())
    generator = rates[0][0]
    of_generator = [rate for who, rate in rates if who == generator]
    of_fake = [rate for who, rate in rates if who != generator]
    assert of_generator == pytest.approx([0, 1e-4 * 5 / 8, 1e-4])
    assert of_fake == pytest.approx([1e-3 * min(1, i / 8) for i in range(11)])


# Whole trainings, rewritten with torch.optim


def published_training(spec, kind):
    """The two published loops, written from their descriptions with ``torch.optim``; only the draws are ours."""
    recipe, batches = spec.recipe, RandomBatches(spec, 2)
    frozen = teacher()
    student, fake = copy.deepcopy(frozen).requires_grad_(True), copy.deepcopy(frozen).requires_grad_(True)
    sigma_max = torch.full((spec.batch, 1), 80.0, dtype=torch.float64)
    optimisers = {net: torch.optim.AdamW(net.parameters(), weight_decay=0.01) for net in (student, fake)}

    def step(net, loss, given):
        optimisers[net].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), given.clip)
        rate = given.learning_rate * constant_with_warmup(iteration, given.warmup)
        optimisers[net].param_groups[0]["lr"] = rate
        optimisers[net].step()

    for iteration in range(5 * (spec.generator_steps - 1) + 1):
        x = student(80.0 * batches.latent(), sigma_max)
        generator_turn = iteration % 5 == 0
        if generator_turn:
            _, sigma, noise = batches.diffusion("dm")
            with torch.no_grad():
                real, false = (net(x + sigma * noise, sigma) for net in (frozen, fake))
                size = (x - real).abs().mean(dim=1, keepdim=True) + (1e-6 if kind == "fastgen" else 0)
                target = x - (false - real) / size
            step(student, 0.5 * nn.functional.mse_loss(x, target), recipe.generator)
        if kind == "dmd2" or not generator_turn:
            _, sigma, noise = batches.diffusion("fake")
            x = x.detach()
            weight = 1 / sigma**2 + 4 if kind == "dmd2" else 1
            step(fake, (weight * (fake(x + sigma * noise, sigma) - x) ** 2).mean(), recipe.fake_score)
    return student.state_dict()


@pytest.mark.parametrize("clip", [10.0, 1e-7])
@pytest.mark.parametrize("kind", ["dmd2", "fastgen"])
def test_a_training_ends_where_the_published_loop_ends(kind, clip):
    """The bound that is published never binds here; one that always binds, near Adam's ε, changes every step."""
    optimiser = {"warmup": 20, "learning_rate": 2e-3, "clip": clip}
    recipe = {"name": kind, "generator": optimiser, "fake_score": optimiser, "ema": None}
    spec = student_spec(recipe=recipe, generator_steps=8)
    snapshots, _ = distil(spec, teacher())
    expected = published_training(spec, kind)
    start = teacher().state_dict()
    assert {f"generator.{name}" for name in expected} == snapshots.keys() - {"generator_step"}
    for name, value in expected.items():
        found = snapshots[f"generator.{name}"]
        assert_close(found[0], start[name])
        assert_close(found[-1], value, rtol=1e-6, atol=1e-9)
    assert (snapshots["generator.network.input.weight"][-1] - start["network.input.weight"]).abs().max() > 2e-4
    # In single precision the networks are those in C. Steps round weights near 1 by 6e-8; they move by 3e-3 and more.
    single, _ = distil(spec.model_copy(update={"dtype": "float32"}), teacher(torch.float32))
    for name, value in expected.items():
        assert single[f"generator.{name}"].dtype == torch.float32
        assert_close(single[f"generator.{name}"][-1].double(), value, rtol=1e-6, atol=2e-6)


# Regression, averages, snapshots


def test_regression_trains_without_a_fake_score():
    """No score is asked in an iteration: only the pool's pairs move the student, by the mean squared error."""
    source = torch.Generator().manual_seed(0)
    z = torch.randn(64, 2, generator=source)
    recipe = Recipe(name="regression", generator={"learning_rate": 0.05, "warmup": 0, "clip": None, "weight_decay": 0})
    loop, events, _ = watched(recipe, PairPool(z, z * torch.tensor([-1.0, 0.5])))
    assert loop.fake is None and loop.fake_optimiser is None
    logs = loop.advance(range(400))
    assert set(events) == {"student learns", "student steps"}
    assert all(log.keys() == {"regression_loss", "student_gradient"} for log in logs)
    assert logs[0]["regression_loss"].item() == pytest.approx(0.5 * (4 + 2.25), rel=0.8)
    assert_close(loop.student.scale.detach(), torch.tensor([-1.0, 0.5]), atol=1e-2, rtol=0)


def test_a_regressed_student_comes_close_to_the_teachers_map():
    recipe = {"name": "regression", "generator": {"learning_rate": 5e-3, "warmup": 0}, "regression_pairs": 512}
    spec = student_spec(init={"kind": "random-head"}, recipe=recipe, generator_steps=500, batch=64)
    snapshots, history = distil(spec, teacher())
    losses = history[:, HISTORY.index("regression_loss")]
    assert torch.isnan(history[:, [HISTORY.index("dm_gradient"), HISTORY.index("fake_loss")]]).all()
    held_out = make_pair_pool(teacher(), spec.noise_range, (300, 2), 123, torch.float64)
    student = build_student(spec)
    student.load_state_dict({k: v[-1] for k, v in snapshots.items() if k != "generator_step"})
    error = ((student(held_out.z) - held_out.target) ** 2).mean() / held_out.target.var()
    assert error.item() < 0.01
    assert losses[-50:].mean() < 0.02 * losses[0]


def test_the_regression_term_is_added_with_its_weight():
    """One step of plain descent: the move is the distribution-matching one plus weight × the regression's."""
    sgd = {"kind": "sgd", "beta1": 0, "learning_rate": 0.1, "warmup": 0, "clip": None, "weight_decay": 0}
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    moves = {}
    for dm, regression in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.25)):
        recipe = Recipe(dm_weight=dm, regression_weight=regression, generator=sgd)
        loop, _, _ = watched(recipe, PairPool(z, -z) if regression else None, iterations=1)
        if dm:
            with torch.no_grad():
                loop.fake.scale.mul_(2)
        loop.advance(range(0, 1))
        moves[dm, regression] = loop.student.scale.detach() - torch.tensor([1.0, 2.0])
    assert_close(moves[2.0, 0.25], 2 * moves[1.0, 0.0] + 0.25 * moves[0.0, 1.0])
    assert moves[1.0, 0.0].abs().min() > 1e-5


@pytest.mark.parametrize(
    "switches", [{}, {"normalise": False}, {"normaliser_offset": 3.0}, {"normaliser_min": 5.0}], ids=str
)
def test_the_normalisers_switches_reach_the_gradient(switches):
    """One step of plain descent at a rate of 1 moves the student by the gradient at its own samples, averaged."""
    sgd = {"kind": "sgd", "beta1": 0, "learning_rate": 1, "warmup": 0, "clip": None, "weight_decay": 0}
    loop, _, seen = watched(Recipe(generator=sgd, fake_trains_with_generator=False, **switches), iterations=1)
    with torch.no_grad():
        loop.fake.scale.mul_(2)
    start = loop.student.scale.detach().clone()
    loop.advance(range(0, 1))
    z, x = seen["student"]
    (_, real), (_, fake) = seen["teacher"], seen["fake"]
    gradient = dm_gradient(x, real, fake, **switches)
    assert_close(start - loop.student.scale.detach(), (gradient * z).sum(0) / z.numel())


def test_what_is_kept_is_the_average_where_the_recipe_averages():
    """The average's recursion over the plain run's weights; averaging must not change the training itself."""
    runs = {}
    for ema in (None, 0.7):
        recipe = {"name": "fastgen", "generator": STILL, "fake_score": STILL, "ema": ema}
        runs[ema], _ = distil(student_spec(recipe=recipe, generator_steps=8), teacher())
    assert runs[None]["generator_step"].tolist() == list(range(9))
    for name, plain in runs[None].items():
        average = plain[0].double()
        for k in range(1, 9):
            average = 0.7 * average + 0.3 * plain[k] if name != "generator_step" else plain[k].double()
            assert_close(runs[0.7][name][k].double(), average, rtol=1e-10, atol=1e-12)
    name = "generator.network.output.weight"
    assert not torch.allclose(runs[0.7][name][-1], runs[None][name][-1])


@pytest.mark.parametrize(("last", "count"), [(2000, 10), (1000, 10), (60, 5), (7, 50), (1, 10)])
def test_snapshots_are_spaced_like_logarithms_from_the_start_to_the_end(last, count):
    steps = snapshot_steps(last, count)
    expected = {0, last} | {round(step) for step in np.geomspace(1, last, count - 1).tolist()}
    assert steps == sorted(expected)
    assert steps[0] == 0 and steps[-1] == last and len(steps) <= count
    assert all(type(step) is int for step in steps)


def test_the_history_has_a_row_for_every_generator_step():
    snapshots, history = distil(student_spec(generator_steps=5), teacher())
    assert history.shape == (5, len(HISTORY)) and history.dtype == torch.float64
    gradients = [HISTORY.index(name) for name in ("dm_gradient", "student_gradient")]
    assert (history[0, gradients] == 0).all()  # the fake score starts as the teacher: nothing to correct yet
    assert (history[1:, gradients] > 0).all()
    assert (history[:, HISTORY.index("fake_loss")] > 0).all()
    assert torch.isnan(history[:, HISTORY.index("regression_loss")]).all()


# The step


def test_the_step_writes_what_a_distillation_returns(tmp_path):
    spec = student_spec(generator_steps=3, dtype="float32")
    written = {}
    step = SimpleNamespace(
        spec=spec,
        resume=tmp_path,
        devices=1,
        progress=lambda done, total: None,
        read_tensors=lambda role, name: {("teacher", "model.safetensors"): teacher_tensors()}[role, name],
        write_tensors=written.__setitem__,
        write_table=written.__setitem__,
    )
    distil_student(step)
    snapshots, history = distil(spec, teacher(torch.float32))
    assert written["snapshots.safetensors"].keys() == snapshots.keys()
    for name, value in snapshots.items():
        assert np.array_equal(written["snapshots.safetensors"][name], value.numpy())
    table = written["history.parquet"]
    assert table.columns.tolist() == ["generator_step", *HISTORY]
    assert table["generator_step"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(table[list(HISTORY)].to_numpy(), history.numpy())
