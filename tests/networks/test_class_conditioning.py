"""Networks that are asked for a class: what a class adds, its gradient, and where it may not be left out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from dmdpipe.diffusion.losses import denoising_loss
from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.networks.bf16 import Bf16Denoiser
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.pullback import pullback_by_autograd
from dmdpipe.specs.network import MLP, UNet, network_name

SMALL = MLP(width=8, depth=2, embedding=4, classes=3)
TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,), classes=3)
SPECS = {"mlp": SMALL, "unet": TINY}
ASKED = torch.tensor([0, 1, 1, 0, 1])  # none of class 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoiser(kind="mlp", dtype=torch.float32):
    return Denoiser(build_network(SPECS[kind], 16, seed=5).to(dtype))


def of_classes(network, of_gradient=False):
    """The learned embedding of each class, a row for each, or its gradient."""
    own = network.unet.class_embedding.weight if hasattr(network, "unet") else network.noise_embedding.weight
    values = own.grad if of_gradient else own
    return values if hasattr(network, "unet") else values[:, SMALL.embedding :].T


def question(dtype=torch.float32):
    return draw(5, 16).to(dtype), draw(5, 1, seed=1).exp().to(dtype)


def test_a_class_adds_its_column_to_the_noise_embedding():
    """The same network without classes, whose bias has the class's column in it."""
    own = denoiser()
    x, sigma = question()
    for label in range(3):
        plain = build_network(MLP(width=8, depth=2, embedding=4), 16, seed=0)
        weights = own.network.state_dict()
        whole = weights["noise_embedding.weight"]
        weights["noise_embedding.weight"] = whole[:, :4]
        weights["noise_embedding.bias"] = weights["noise_embedding.bias"] + whole[:, 4 + label]
        plain.load_state_dict(weights)
        with torch.no_grad():
            assert_close(own(x, sigma, torch.full((5,), label)), Denoiser(plain)(x, sigma))


@pytest.mark.parametrize("kind", SPECS)
def test_answers_depend_on_the_class_and_on_no_other_rows(kind):
    own = denoiser(kind).requires_grad_(False)
    x, sigma = question()
    answers = [own(x, sigma, torch.full((5,), label)) for label in range(3)]
    assert all(not torch.allclose(a, b, atol=1e-5) for a, b in zip(answers, answers[1:], strict=False))
    mixed = own(x, sigma, ASKED)
    assert_close(mixed, torch.stack([answers[label][row] for row, label in enumerate(ASKED)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SPECS)
def test_a_grid_of_levels_and_classes_is_looked_up_at_both(kind):
    own = denoiser(kind).requires_grad_(False)
    x, grid = question()
    rows = torch.tensor([4, 0, 2, 2, 1])
    assert_close(own(x, own.levels(grid)(rows, ASKED)), own(x, grid[rows], ASKED))
    assert_close(own(x, own.every_class(grid[:1]).at(ASKED)), own(x, grid[:1], ASKED))


@pytest.mark.parametrize("kind", SPECS)
def test_the_gradient_at_the_classes_is_a_difference_quotient(kind):
    own = denoiser(kind, torch.float64)
    FlatParameters(own)
    x, sigma = question(torch.float64)
    clean = draw(5, 16, seed=2).double()

    def loss():
        with torch.no_grad():
            return float((own(x, sigma, ASKED) - clean).square().mean())

    denoising_loss(own, x, own.conditions(sigma, ASKED), clean)
    weights, gradient = of_classes(own.network), of_classes(own.network, of_gradient=True)
    step = 1e-6
    for label in range(3):
        for unit in (0, 3):
            with torch.no_grad():
                weights[label, unit] += step
                above = loss()
                weights[label, unit] -= 2 * step
                below = loss()
                weights[label, unit] += step
            assert gradient[label, unit].item() == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-9)
    assert gradient[:2].abs().min() > 0 and (gradient[2] == 0).all()


def test_the_kernel_computes_what_autograd_computes():
    """In single precision on the CPU an MLP's loss and gradients come from C, with classes as without."""
    own = denoiser()
    FlatParameters(own)
    plain = copy.deepcopy(own).double()
    FlatParameters(plain)
    x, grid = question()
    clean, rows = draw(5, 16, seed=2), torch.tensor([4, 0, 2, 2, 1])
    assert own.compiled(x)
    loss = denoising_loss(own, x, own.levels(grid)(rows, ASKED), clean, torch.ones(15, 1))
    answer, pullback = pullback_by_autograd(plain, x.double(), grid[rows].double(), ASKED)
    error = answer - clean.double()
    pullback(2 * error / error.numel())
    assert float(loss) == pytest.approx(error.square().mean().item(), rel=1e-5)
    for found, expected in zip(own.parameters(), plain.parameters(), strict=True):
        assert_close(found.grad.double(), expected.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SPECS)
def test_bfloat16_keeps_the_class(kind):
    full, half = denoiser(kind).requires_grad_(False), Bf16Denoiser(denoiser(kind).network).requires_grad_(False)
    x, sigma = question()
    assert_close(half(x, sigma, ASKED), full(x, sigma, ASKED), atol=0.1, rtol=0.05)
    assert not torch.allclose(half(x, sigma, ASKED), half(x, sigma, 2 * torch.ones_like(ASKED)), atol=1e-3)


def test_the_discriminators_view_of_a_unet_has_its_class():
    from dmdpipe.distill.adversarial import hidden_state

    own = denoiser("unet").requires_grad_(False)
    x, sigma = question()
    one, other = (hidden_state(own, x, own.conditions(sigma, asked)) for asked in (ASKED, 2 - ASKED))
    assert (one - other).abs().max() > 1e-4
    middle = []
    own.network.unet.mid_block.register_forward_hook(lambda module, inputs, output: middle.append(output))
    own(x, sigma, ASKED)
    assert_close(one, middle[0])


@pytest.mark.parametrize("kind", SPECS)
def test_a_class_is_neither_left_out_nor_made_up(kind):
    x, sigma = question()
    with pytest.raises(ValueError, match="3 classes, asked for none"):
        denoiser(kind)(x, sigma)
    without = Denoiser(build_network(SPECS[kind].model_copy(update={"classes": 0}), 16, seed=5))
    with pytest.raises(ValueError, match="0 classes, asked for some"):
        without(x, sigma, ASKED)


def test_networks_without_classes_say_nothing_of_them():
    """Neither in their JSON, from which digests are made, nor in their names."""
    for with_classes, name in ((SMALL, "mlp-8x2-3-classes"), (TINY, "unet-8x1-2-3-classes")):
        spec = with_classes.model_copy(update={"classes": 0})
        assert "classes" not in spec.model_dump(mode="json") and "classes" in with_classes.model_dump(mode="json")
        assert network_name(with_classes) == name and "classes" not in network_name(spec)
