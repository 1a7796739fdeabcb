"""The MLP denoiser in C against plain PyTorch in double precision, and what no row's answer may depend on."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from dmdpipe.diffusion.losses import denoising_loss, weighted_squared_error
from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.kernels.conditions import Conditions
from dmdpipe.kernels.library import function
from dmdpipe.kernels.mlp import _memory as memory_to_work_with
from dmdpipe.networks.denoiser import Denoiser
from dmdpipe.networks.mlp import MLP

ROUNDING = 2.0**-24
WIDTHS = (1, 5, 16, 40, 64, 130)
BATCHES = (1, 5, 47, 48, 49, 256)
LEVELS = ("one", "each", "table")
# A block of rows holds 132 or, by AVX-512, 96.
CASES = [
    *((width, batch) for width in WIDTHS for batch in BATCHES),
    (16, 96),
    (40, 131),
    (64, 132),
    (128, 133),
    (300, 50),
]
# The other sizes go through their values beside these, each at another pace.
DIMS, DEPTHS, EMBEDDINGS = (1, 2, 15, 16, 17, 33, 70), (1, 2, 3, 4), (2, 8, 16, 18, 34)


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are small, and threads that wait for each other slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(width, dim, depth, embedding, skip=True):
    """Return a denoiser in single precision with room for gradients, and its twin in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = MLP(dim, SimpleNamespace(width=width, depth=depth, embedding=embedding, classes=0))
    double = Denoiser(copy.deepcopy(network).double(), skip)
    denoiser = Denoiser(network, skip)
    FlatParameters(denoiser)
    FlatParameters(double)
    return denoiser, double


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditions(denoiser, levels, batch):
    if levels == "table":
        return denoiser.conditions(draw(7, 1, seed=2).exp()).at(torch.arange(batch) * 3 % 7)
    return denoiser.conditions(draw(batch if levels == "each" else 1, 1, seed=2).exp())


def in_double(given):
    return Conditions(*(column.double() for column in given[:4]), given.rows)


def gradients(denoiser):
    return [p.grad.clone() for p in denoiser.parameters()]


def reference(double, x, given, to_answer):
    """Return D(x) by PyTorch in double precision, and the gradients at the parameters."""
    answer = double(x.double(), in_double(given))
    return answer.detach(), torch.autograd.grad(answer, list(double.parameters()), to_answer.double())


def largest(tensor):
    return float(tensor.abs().max())


def close(found, expected, roundings):
    """Whether tensors agree to so many roundings of their largest entry, or of a thousandth of the largest of all."""
    rest = 1e-3 * max(map(largest, expected))
    return all(
        largest(one.double() - exact) <= roundings * ROUNDING * max(rest, largest(exact))
        for one, exact in zip(found, expected, strict=True)
    )


def sizes_beside(width, batch):
    i = 7 * [*WIDTHS, width].index(width) + [*BATCHES, batch].index(batch)
    return DIMS[i % 7], DEPTHS[i % 4], EMBEDDINGS[i % 5]


@pytest.mark.parametrize(("width", "batch"), CASES)
def test_answers_and_gradients_are_those_of_plain_pytorch(width, batch):
    dim, depth, embedding = sizes_beside(width, batch)
    for skip in (True, False):
        denoiser, double = make(width, dim, depth, embedding, skip)
        for levels in LEVELS:
            given = conditions(denoiser, levels, batch)
            x, to_answer, before = draw(3, batch, dim, seed=3)
            expected, slopes = reference(double, x, given, to_answer)
            with torch.no_grad():
                answer = denoiser(x, given)
            assert close([answer], [expected], 32)

            kept, pullback = denoiser.with_pullback(x, given)
            assert torch.equal(kept, answer) and not kept.requires_grad
            pullback(to_answer)
            found = gradients(denoiser)
            assert close(found, slopes, 64)
            for parameter in denoiser.parameters():
                parameter.grad.copy_(before[0, 0].expand_as(parameter))
            _, pullback = denoiser.with_pullback(x, given)
            pullback(to_answer, add=True)
            for parameter, one in zip(denoiser.parameters(), found, strict=True):
                assert torch.equal(parameter.grad, before[0, 0] + one)


@pytest.mark.parametrize(("width", "batch"), CASES)
def test_the_denoising_loss_is_that_of_plain_pytorch(width, batch):
    dim, depth, embedding = sizes_beside(width, batch)
    for skip, weighted in ((True, batch % 2 == 0), (False, batch % 2 == 1)):
        denoiser, double = make(width, dim, depth, embedding, skip)
        for levels in LEVELS:
            given = conditions(denoiser, levels, batch)
            x, clean = draw(2, batch, dim, seed=3)
            weight = 0.5 + draw(len(given.c_in), 1, seed=4).square() if weighted else None
            own = None if weight is None else weight.double()
            if weighted and given.rows is not None:
                own = own[given.rows]
            answer = double(x.double(), in_double(given))
            expected, to_answer = weighted_squared_error(answer.detach(), clean.double(), own)
            slopes = torch.autograd.grad(answer, list(double.parameters()), to_answer)
            for parameter in denoiser.parameters():
                parameter.grad.fill_(math.nan)
            with torch.no_grad():
                loss = denoising_loss(denoiser, x, given, clean, weight)
            assert type(loss) is float
            assert loss == pytest.approx(expected.item(), rel=32 * ROUNDING)
            assert close(gradients(denoiser), slopes, 64)
            table = None if weight is None else weight.double()
            again = denoising_loss(double, x.double(), in_double(given), clean.double(), table)
            assert again.item() == pytest.approx(expected.item(), rel=1e-12)
            for parameter, exact in zip(double.parameters(), slopes, strict=True):
                assert_close(parameter.grad, exact, rtol=1e-9, atol=1e-12)


def everything(denoiser, x, given, clean, weight):
    """Return whatever the kernel computes: answers, gradients, losses."""
    with torch.no_grad():
        answer = denoiser(x, given)
    kept, pullback = denoiser.with_pullback(x, given)
    pullback(clean)
    back = gradients(denoiser)
    loss = denoising_loss(denoiser, x, given, clean, weight)
    return [answer, kept, *back, torch.tensor(loss), *gradients(denoiser)]


def same_bytes(one, other):
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("levels", LEVELS)
def test_how_tensors_lie_in_memory_does_not_matter(levels):
    denoiser, _ = make(24, 5, 2, 8)
    given = conditions(denoiser, levels, 50)
    x, clean = draw(2, 50, 5)
    weight = draw(len(given.c_in), 1, seed=4).square()
    expected = everything(denoiser, x, given, clean, weight)

    def scattered(tensor):
        return torch.stack([tensor, tensor + 1], dim=2).transpose(0, 1).contiguous().transpose(0, 1)[:, :, 0]

    assert not scattered(x).is_contiguous()
    assert same_bytes(everything(denoiser, scattered(x), given, scattered(clean), weight), expected)
    assert same_bytes(everything(denoiser, torch.cat([x, x], 1)[:, :5], given, clean, weight), expected)
    sigma = torch.stack([draw(50, 1, seed=2).exp()] * 2, dim=2)[:, :, 0]
    assert not sigma.is_contiguous()
    own = denoiser.conditions(sigma)
    same = denoiser.conditions(sigma.contiguous())
    assert same_bytes(everything(denoiser, x, own, clean, None), everything(denoiser, x, same, clean, None))


@pytest.mark.parametrize(("dim", "width", "embedding"), [(2, 16, 8), (17, 40, 18), (64, 128, 32), (3, 5, 2)])
def test_a_row_depends_on_neither_the_batch_nor_its_neighbours(dim, width, embedding):
    denoiser, _ = make(width, dim, 3, embedding)
    x, sigma = draw(256, dim), draw(256, 1, seed=2).exp()
    with torch.no_grad():
        together = denoiser(x, sigma)
        for first, last in ((0, 1), (7, 54), (95, 97), (131, 133), (90, 256), (255, 256)):
            assert torch.equal(denoiser(x[first:last], sigma[first:last]), together[first:last])
        order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
        assert torch.equal(denoiser(x[order], sigma[order]), together[order])
        assert torch.equal(denoiser(x, denoiser.conditions(sigma).at(order)), denoiser(x, sigma[order]))
        assert torch.equal(denoiser(x, sigma[:1]), denoiser(x, sigma[:1].expand(256, 1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_stays_in_its_row_and_shows_in_the_gradients(bad):
    denoiser, _ = make(40, 3, 2, 8)
    x, clean = draw(2, 100, 3)
    spoiled = x.clone()
    spoiled[60, 1] = bad
    given = conditions(denoiser, "each", 100)
    with torch.no_grad():
        expected, found = denoiser(x, given), denoiser(spoiled, given)
    others = torch.arange(100) != 60
    assert torch.equal(found[others], expected[others])
    assert not found[60].isfinite().any()
    answer, pullback = denoiser.with_pullback(spoiled, given)
    assert torch.equal(answer[others], expected[others])
    pullback(answer - clean)
    assert all(not one.isfinite().any() for one in gradients(denoiser)[1:])
    assert not math.isfinite(denoising_loss(denoiser, spoiled, given, clean))
    assert all(not one.isfinite().any() for one in gradients(denoiser)[1:])
    denoising_loss(denoiser, x, given, clean)
    assert all(one.isfinite().all() for one in gradients(denoiser))


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(
    ("width", "dim", "embedding", "batch"),
    [(5, 3, 2, 50), (16, 16, 16, 48), (130, 70, 34, 133), (128, 16, 32, 133), (128, 1, 4, 1)],
)
def test_memory_is_written_before_it_is_read_and_not_beyond_its_ends(monkeypatch, width, dim, embedding, batch, levels):
    """Fresh memory holds not-a-numbers here, between two borders that must stay."""
    denoiser, _ = make(width, dim, 2, embedding)
    given = conditions(denoiser, levels, batch)
    x, clean = draw(2, batch, dim)
    weight = draw(len(given.c_in), 1, seed=4).square()
    expected = everything(denoiser, x, given, clean, weight)
    given_out = []

    def guarded(*shape):
        shape = torch.Size(shape[0] if isinstance(shape[0], torch.Size) else shape)
        whole = torch.full((shape.numel() + 512,), 123.0)
        given_out.append(whole)
        return whole[256:-256].fill_(math.nan).view(shape)

    monkeypatch.setattr("dmdpipe.kernels.mlp.zeros", guarded)
    monkeypatch.setattr("dmdpipe.kernels.mlp.torch.empty", guarded)
    # What is kept from call to call has no borders.
    monkeypatch.setattr("dmdpipe.kernels.mlp._memory", memory_to_work_with.__wrapped__)
    denoiser.kernel.spare = None
    monkeypatch.setattr("dmdpipe.kernels.mlp.torch.empty_like", lambda tensor: guarded(tensor.shape))
    for parameter in denoiser.parameters():
        parameter.grad = guarded(parameter.shape)
    found = everything(denoiser, x, given, clean, weight)
    monkeypatch.undo()
    assert len(given_out) >= 7
    assert same_bytes(found, expected)
    assert all(bool((whole[:256] == 123).all() and (whole[-256:] == 123).all()) for whole in given_out)


def test_pullbacks_that_wait_keep_what_is_theirs():
    denoiser, _ = make(24, 5, 2, 8)
    x, to_answer = draw(2, 3, 50, 5)
    given = conditions(denoiser, "table", 50)

    def alone(i):
        _, pullback = denoiser.with_pullback(x[i], given)
        pullback(to_answer[i])
        return gradients(denoiser)

    expected = [alone(i) for i in range(3)]
    waiting = [denoiser.with_pullback(x[i], given)[1] for i in range(3)]
    for i in (1, 0, 2):
        waiting[i](to_answer[i])
        assert same_bytes(gradients(denoiser), expected[i])


def test_memory_that_was_kept_for_fewer_rows_is_not_taken_for_more():
    denoiser, _ = make(24, 5, 2, 8)
    x, to_answer = draw(2, 200, 5)
    _, pullback = denoiser.with_pullback(x[:5], conditions(denoiser, "table", 5))
    pullback(to_answer[:5])
    # Longer than it says: what is written behind its end shows, and harms nothing.
    size = len(denoiser.kernel.spare)
    whole = torch.full((8 * size,), 123.0)
    denoiser.kernel.spare = whole[:size]
    denoiser.with_pullback(x, conditions(denoiser, "table", 200))[1](to_answer)
    assert bool((whole[size:] == 123).all())


def test_parameters_and_inputs_are_left_as_they_are():
    denoiser, _ = make(24, 5, 2, 8)
    given = conditions(denoiser, "table", 50)
    x, clean = draw(2, 50, 5)
    weight = draw(7, 1, seed=4).square()
    held = [*denoiser.parameters(), x, clean, weight, *given]
    before = [tensor.detach().clone() for tensor in held]
    everything(denoiser, x, given, clean, weight)
    assert all(torch.equal(tensor, old) for tensor, old in zip(held, before, strict=True))


def test_a_copy_and_loaded_weights_answer_for_themselves():
    denoiser, _ = make(8, 2, 1, 4)
    x, sigma = draw(3, 2), torch.ones(1, 1)
    with torch.no_grad():
        before = denoiser(x, sigma)
        twin = copy.deepcopy(denoiser)
        for parameter in denoiser.parameters():
            parameter.mul_(2)
        assert torch.equal(twin(x, sigma), before) and not torch.equal(denoiser(x, sigma), before)
        twin.load_state_dict(denoiser.state_dict())
        assert torch.equal(twin(x, sigma), denoiser(x, sigma))
        there_and_back = twin.double().float()
        assert torch.equal(there_and_back(x, sigma), denoiser(x, sigma))


def test_who_answers_is_chosen_by_precision_gradients_and_request():
    denoiser, _ = make(8, 2, 1, 4)
    asked = []
    denoiser.kernel.denoise = lambda x, given: asked.append("C") or x
    x, sigma = draw(3, 2), torch.ones(1, 1)
    denoiser(x, sigma)
    assert not asked
    with torch.no_grad():
        denoiser(x, sigma)
        assert asked == ["C"]
        denoiser.plain = True
        denoiser(x, sigma)
        denoiser.plain = False
        denoiser.double()(x.double(), sigma.double())
    assert asked == ["C"]


def cut(given):
    """Conditions whose features [B, E] end one too soon."""
    return given._replace(features=given.features[:, :-1])


WRONG = {
    "a coordinate more": lambda denoiser, x, sigma: denoiser(draw(6, 4), sigma),
    "a coordinate less": lambda denoiser, x, sigma: denoiser(draw(6, 2), sigma),
    "too few noise levels": lambda denoiser, x, sigma: denoiser(x, sigma[:4]),
    "too few rows of the table": lambda denoiser, x, sigma: denoiser(x, denoiser.conditions(sigma).at(torch.arange(2))),
    "a row beyond the table": lambda denoiser, x, sigma: denoiser(x, denoiser.conditions(sigma).at(torch.arange(1, 7))),
    "a noise feature less": lambda denoiser, x, sigma: denoiser(x, cut(denoiser.conditions(sigma))),
    "rows in single precision": lambda denoiser, x, sigma: denoiser(x, denoiser.conditions(sigma).at(torch.zeros(6))),
    "weights in double precision": lambda denoiser, x, sigma: denoiser.double()(x, sigma),
}


@pytest.mark.parametrize("case", WRONG)
@torch.no_grad()
def test_what_pytorch_refuses_is_refused(monkeypatch, case):
    """Before C reads what lies beside it in memory: a call of C, but for its own check, ends the test here."""
    denoiser, _ = make(8, 3, 1, 4)
    x, sigma = draw(6, 3), draw(6, 1).exp()
    denoiser.plain = True
    with pytest.raises((RuntimeError, IndexError)):
        WRONG[case](denoiser, x, sigma)
    denoiser.float().plain = False
    denoiser(x, sigma)

    def unreachable(file, name, *types):
        if name == "mlp_rows_fit" and case != "rows in single precision":
            return function(file, name, *types)
        return lambda *arguments: pytest.fail(f"{name} was called")

    monkeypatch.setattr("dmdpipe.kernels.mlp.function", unreachable)
    with pytest.raises((RuntimeError, IndexError, ValueError)):
        WRONG[case](denoiser, x, sigma)


@pytest.mark.parametrize("of", ["a pullback", "a loss"])
def test_gradients_without_a_place_are_refused(monkeypatch, of):
    """A parameter that is frozen, or whose gradient was set to None, has none."""
    denoiser, _ = make(8, 3, 1, 4)
    x, given = draw(6, 3), denoiser.conditions(torch.ones(1, 1))
    answer, pullback = denoiser.with_pullback(x, given)
    next(denoiser.parameters()).grad = None

    def unreachable(file, name, *types):
        return lambda *arguments: pytest.fail(f"{name} was called")

    monkeypatch.setattr("dmdpipe.kernels.mlp.function", unreachable)
    with pytest.raises((RuntimeError, ValueError, AssertionError)):
        pullback(answer) if of == "a pullback" else denoising_loss(denoiser, x, given, x)


# silu, alone


def silu_alone(x):
    """Return silu(x) [N, 1] and its slope at every x [N, 1], from a network that does nothing else.

    h₀ = (x, 0); h₁ = (x, silu(x)), the output is its second entry; the slope is the gradient at the second bias.
    """
    denoiser, _ = make(2, 1, 1, 2, skip=False)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
        denoiser.network.input.weight[0, 0] = 1
        denoiser.network.blocks[0].weight[1, 0] = 1
        denoiser.network.output.weight[0, 1] = 1
    given = Conditions(torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1, 2))
    with torch.no_grad():
        value = denoiser(x, given)
    slopes = []
    for row in x:
        denoiser.with_pullback(row[None], given)[1](torch.ones(1, 1))
        slopes.append(denoiser.network.blocks[0].bias.grad[1].clone())
    return value, torch.stack(slopes)[:, None]


def test_silu_and_its_slope_are_exact_to_a_few_roundings():
    parts = torch.linspace(-86, 87, 701), torch.linspace(-2, 2, 401), torch.tensor([0.0, 1e-30, -1e-30])
    x = torch.cat(parts)[:, None]
    value, slope = silu_alone(x)
    exact = x.double()
    gate = torch.sigmoid(exact)
    assert_close(value.double(), exact * gate, rtol=8 * ROUNDING, atol=0)
    assert_close(slope.double(), gate * (1 + exact * (1 - gate)), rtol=16 * ROUNDING, atol=4 * ROUNDING)


def test_silu_of_extreme_numbers_is_their_limit():
    value, slope = silu_alone(torch.tensor([[100.0], [1e30], [-100.0], [-1e4]]))
    assert_close(value, torch.tensor([[100.0], [1e30], [0.0], [0.0]]), rtol=0, atol=1e-30)
    assert_close(slope, torch.tensor([[1.0], [1.0], [0.0], [0.0]]), rtol=0, atol=1e-30)
