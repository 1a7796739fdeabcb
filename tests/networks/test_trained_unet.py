"""The U-Net that is trained: where pixels go, its gradient, its weights, and what it is told of noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dmdpipe.copying.inference_cost import inference_cost, multiplications, weights
from dmdpipe.data.layout import image_shape
from dmdpipe.data.photos import patches
from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.networks.bf16 import Bf16Denoiser
from dmdpipe.networks.denoiser import Denoiser, build_network, zero_output_layer
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.data import Digits, Photos
from dmdpipe.specs.diffusion import TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP, UNet
from dmdpipe.specs.student import StudentSpec

TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,))
DEEP = UNet(channels=8, multipliers=(1, 1, 2), blocks=1, attention=())


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Seen(nn.Module):
    """Stands in for the library's network: notes the images and time steps that it gets, and answers the images."""

    def forward(self, images, time_steps, return_dict):
        self.images, self.time_steps = images, time_steps
        return (images,)


def observed(dim, spec=TINY):
    network = build_network(spec, dim, 0)
    network.unet, network.output = Seen(), nn.Identity()
    return network


# Pixels


def test_the_pixels_of_a_photo_are_where_they_were_in_the_photo():
    """A planted photo whose every number says its row, its column and its colour."""
    row, column, colour = np.ogrid[:5, :5, :3]
    photo = (50 * row + 10 * column + colour).astype(np.uint8)
    spec = Photos(side=5, n_train=1, n_held_out=1, dequantisation=0)
    x = torch.from_numpy(patches(photo, 1, "n_train", spec, np.random.default_rng(0)) * 256).float()
    network = observed(75)
    answer = network(x, torch.zeros(1, 1))
    assert network.unet.images.shape == (1, 3, 6, 6)
    assert torch.equal(network.unet.images[0, :, :5, :5], torch.from_numpy(photo).float().permute(2, 0, 1))
    assert not network.unet.images[0, :, 5].any() and not network.unet.images[0, :, :, 5].any()
    assert torch.equal(answer, x)


@pytest.mark.parametrize(("dim", "padded"), [(1, 4), (16, 4), (49, 8), (100, 12), (784, 28), (3 * 49, 8), (3072, 32)])
def test_flat_images_of_every_side_come_back_as_they_went_in(dim, padded):
    network = observed(dim, DEEP)
    x = draw(3, dim)
    assert torch.equal(network(x, torch.zeros(3, 1)), x)
    assert network.unet.images.shape[2:] == (padded, padded)


@pytest.mark.parametrize(("dim", "shape"), [(1, (1, 1)), (3, (1, 3)), (64, (8, 1)), (192, (8, 3)), (3072, (32, 3))])
def test_the_number_of_coordinates_says_side_and_colours(dim, shape):
    assert image_shape(dim) == shape


@pytest.mark.parametrize("dim", [2, 6, 50, 193])
def test_numbers_that_are_no_image_are_refused(dim):
    with pytest.raises(ValueError, match=f"{dim} numbers"):
        image_shape(dim)


# Noise levels


def test_time_steps_are_linear_in_the_logarithm_of_the_noise_level():
    network = observed(16)
    sigma = torch.tensor([[0.002], [0.4], [80.0]])
    Denoiser(network)(draw(3, 16), sigma)
    assert_close(network.unet.time_steps, torch.tensor([0.0, 500.0, 1000.0]), atol=1e-3, rtol=0)


def test_the_network_tells_noise_levels_apart():
    network = build_network(TINY, 16, 0)
    x = torch.ones(1, 16)
    levels = torch.linspace(-1.55, 1.1, 40)
    with torch.no_grad():
        answers = torch.cat([network(x, network.noise_features(c.reshape(1, 1))) for c in levels])
    gaps = torch.cdist(answers, answers) + torch.eye(40)
    assert gaps.min() > 1e-3


@torch.no_grad()
def test_rows_do_not_depend_on_one_another_or_on_how_the_level_is_told():
    denoiser = Denoiser(build_network(TINY, 49, 0))
    x, sigma = draw(4, 49), torch.full((4, 1), 0.7)
    together = denoiser(x, sigma)
    assert_close(together, torch.cat([denoiser(row[None], sigma[:1]) for row in x]), atol=1e-5, rtol=1e-5)
    assert_close(together, denoiser(x, sigma[:1]), atol=1e-6, rtol=1e-6)


# Weights


def test_weights_are_a_function_of_the_seed_alone_and_leave_the_global_stream_alone():
    torch.manual_seed(1)
    first = build_network(TINY, 16, 0).state_dict()
    torch.manual_seed(2)
    again = build_network(TINY, 16, 0).state_dict()
    drawn = torch.randn(3)
    torch.manual_seed(2)
    assert torch.equal(drawn, torch.randn(3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build_network(TINY, 16, 1).state_dict()
    # Norms start at 1 and 0 for every seed.
    same = {name for name in first if torch.equal(first[name], other[name])}
    assert same == {name for name in first if "norm" in name}


def test_what_is_stored_of_a_student_is_all_that_there_is():
    """Snapshots hold parameters alone: there must be nothing else in a network's state, and nothing twice."""
    network = build_network(TINY, 16, 0)
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]
    assert not list(network.buffers())


def test_a_stored_network_is_loaded_by_its_names():
    spec = TeacherSpec(data=Digits(side=4), score=TrainedScore(network=TINY))
    # Attention rounds otherwise where weights may get a gradient.
    network = build_network(TINY, 16, 5).requires_grad_(False)
    loaded = load_teacher(spec, {name: value.numpy() for name, value in network.state_dict().items()})
    x, sigma = draw(2, 16), torch.ones(2, 1)
    with torch.no_grad():
        assert torch.equal(loaded(x, sigma), Denoiser(network)(x, sigma))


def test_with_a_zero_output_layer_the_denoiser_is_the_skip():
    network = build_network(TINY, 16, 0)
    zero_output_layer(network)
    x, sigma = draw(3, 16), torch.tensor([[0.1], [1.0], [10.0]])
    with torch.no_grad():
        assert_close(Denoiser(network)(x, sigma), 0.25 / (sigma**2 + 0.25) * x)


@pytest.mark.parametrize(
    ("spec", "dim"), [(TINY, 49), (DEEP, 75), (UNet(channels=24, multipliers=(2, 1), blocks=2, attention=(0,)), 16)]
)
def test_weights_and_multiplications_are_those_of_its_layers(spec, dim):
    network = build_network(spec, dim, 0)
    counted = {"weights": 0, "multiplications": 0}

    def count(layer, inputs, output):
        positions = output.numel() // layer.weight.shape[0]
        counted["weights"] += layer.weight.numel()
        counted["multiplications"] += layer.weight.numel() * positions

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(draw(1, dim), torch.zeros(1, 1))
    assert counted == {"weights": weights(spec, dim), "multiplications": multiplications(spec, dim)}


def test_a_narrower_student_costs_less_than_its_teachers_network():
    teacher = TeacherSpec(data=Digits(), score=TrainedScore(network=UNet(channels=16)))
    narrow = StudentSpec(teacher=teacher, network=UNet(channels=8), init={"kind": "random-head"}, sampling_steps=2)
    assert 2 / 5 < inference_cost(narrow) < 2 / 3
    assert inference_cost(narrow.model_copy(update={"network": MLP(width=8)})) < 1e-3


# Gradients


def test_the_pullback_is_the_slope_of_the_loss_in_double_precision():
    """Along random directions through all weights, by central differences."""
    network = build_network(TINY, 49, 0).double()
    denoiser = Denoiser(network)
    parameters = FlatParameters(denoiser)
    x, to_answer = draw(2, 3, 49).double()
    sigma = torch.tensor([[0.05], [0.5], [5.0]], dtype=torch.float64)
    with torch.no_grad():
        _, pullback = with_pullback(denoiser, x, sigma)
        pullback(to_answer)
        gradient = parameters.gradient.clone()
        for seed in (1, 2):
            direction = nn.functional.normalize(draw(len(gradient), seed=seed).double(), dim=0)
            ends = []
            for way in (1e-5, -1e-5):
                parameters.values.add_(direction, alpha=way)
                ends.append((denoiser(x, sigma) * to_answer).sum())
                parameters.values.sub_(direction, alpha=way)
            slope = (ends[0] - ends[1]) / 2e-5
            assert_close(torch.dot(gradient, direction), slope, rtol=1e-6, atol=0)
        pullback_again = with_pullback(denoiser, x, sigma)[1]
        pullback_again(to_answer, add=True)
    assert_close(parameters.gradient, 2 * gradient, rtol=1e-12, atol=1e-12)


def test_the_middle_is_what_the_upper_half_is_given():
    network = build_network(TINY, 49, 0)
    kept = []
    network.unet.mid_block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    x = draw(3, 49)
    for time_steps in (torch.tensor([[3.0], [500.0], [900.0]]), torch.tensor([[250.0]])):
        with torch.no_grad():
            network(x, time_steps)
            found = network.middle(x, time_steps)
        assert found.shape[1:] == network.middle_shape == (16, 4, 4)
        assert torch.equal(found, kept[0])
        kept.clear()


# Precision


class Convolutions(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.types |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return function(*args, **(kwargs or {}))


def test_in_bfloat16_answers_and_gradients_are_those_of_float32_to_its_rounding():
    x, to_answer = draw(2, 16, 64)
    sigma = draw(16, 1).exp()
    found = {}
    for kind in (Denoiser, Bf16Denoiser):
        network = build_network(TINY, 64, 0)
        parameters = FlatParameters(network)
        with torch.no_grad(), Convolutions() as seen:
            answer, pullback = with_pullback(kind(network), x, sigma)
            pullback(to_answer)
        assert seen.types == {torch.bfloat16 if kind is Bf16Denoiser else torch.float32}
        assert answer.dtype == parameters.gradient.dtype == torch.float32
        found[kind] = answer, parameters.gradient
    for half, full in zip(found[Bf16Denoiser], found[Denoiser], strict=True):
        assert 2**-12 < (half - full).norm() / full.norm() < 2**-5
