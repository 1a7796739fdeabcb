"""A batch in shards: its gradient is the whole batch's, and which process computes a shard changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from killed_step import Step
from torch.testing import assert_close

from dmdpipe.diffusion.losses import edm_weight
from dmdpipe.diffusion.optimiser import FlatParameters
from dmdpipe.diffusion.shards import Ranks, Shards
from dmdpipe.diffusion.sharing import ranks_of
from dmdpipe.diffusion.training import train_denoiser
from dmdpipe.errors import UserError
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.diffusion import TrainedScore
from dmdpipe.specs.hardware import Hardware
from dmdpipe.specs.network import UNet

TINY = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(1,))
BATCH = 8


class Recorded(Ranks):
    """One of several processes, which is told what the others' shards are."""

    def __init__(self, number: int, parts: list[torch.Tensor]):
        self.number, self.count, self.parts = number, len(parts), parts

    def gathered(self, own: torch.Tensor) -> torch.Tensor:
        assert own.shape == self.parts[self.number].shape
        return torch.cat([*self.parts[: self.number], own, *self.parts[self.number + 1 :]])


def gradients_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of a loss over a batch, and its gradient at the weights, by plain autograd."""
    denoiser = Denoiser(build_network(TINY, 16, seed=3).double())
    sigma = torch.linspace(0.1, 2, len(x), dtype=torch.float64)[:, None]
    noisy = x + sigma * x.flip(0)
    loss = (edm_weight(sigma) * (denoiser(noisy, sigma) - x) ** 2).mean()
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(denoiser.parameters()))])


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_mean_of_the_shards_gradients_is_the_gradient_of_the_whole_batch(count: int) -> None:
    x = Stream(1).normal(BATCH, 16).double()
    expected = gradients_of(x)
    network = build_network(TINY, 16, seed=3).double()
    gradient = FlatParameters(network).gradient
    sigma = torch.linspace(0.1, 2, BATCH, dtype=torch.float64)[:, None]
    noisy = x + sigma * x.flip(0)

    def of_rows(own: slice) -> dict[str, torch.Tensor]:
        answer, pullback = with_pullback(Denoiser(network), noisy[own], sigma[own])
        error = answer - x[own]
        pullback(2 * edm_weight(sigma[own]) * error / error.numel())
        return {"loss": (edm_weight(sigma[own]) * error**2).mean(), "root": error.square().mean().sqrt()}

    shards = Shards(count, BATCH)
    log = shards.mean(gradient, (of_rows(own) for own in shards.own), roots=["root"])
    assert_close((log["loss"], gradient), expected, rtol=1e-12, atol=1e-13)
    assert_close(log["root"], (Denoiser(network)(noisy, sigma) - x).square().mean().sqrt().detach(), rtol=1e-12, atol=0)


def test_shards_are_added_in_their_order_whoever_computes_them() -> None:
    """In single precision 1 + 2⁻²⁴ + 2⁻²⁴ is 1 in this order, and more in the opposite one."""
    values = [1.0, 2.0**-24, 2.0**-24, 0.0]

    def log_of(k: int, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
        gradient.fill_(values[k])
        return {"loss": torch.tensor(values[k])}

    for count in (1, 2, 4):
        share = 4 // count
        rows = torch.tensor([[value, value] for value in values])
        for number in range(count):
            gradient = torch.zeros(1)
            shards = Shards(4, 8, Recorded(number, list(rows.split(share))))
            numbers = [own.start // 2 for own in shards.own]
            assert numbers == list(range(number * share, (number + 1) * share))
            shards.mean(gradient, (log_of(k, gradient) for k in numbers))
            assert gradient.item() == 0.25


def test_every_row_is_in_one_shard_of_one_process() -> None:
    for count, ranks in ((4, 1), (4, 2), (4, 4), (6, 3)):
        of_each = [Shards(count, 24, Recorded(k, [torch.zeros(1)] * ranks)).own for k in range(ranks)]
        rows = [row for own in of_each for part in own for row in range(24)[part]]
        assert rows == list(range(24))
        assert {len(own) for own in of_each} == {count // ranks}


def test_a_teacher_in_shards_is_that_of_whole_batches_to_rounding(tmp_path) -> None:
    data = Stream(2).normal(40, 16) / 2
    spec = TrainedScore(network=TINY, steps=4, batch=BATCH, warmup=0, ema=0.5)
    whole, losses = train_denoiser(spec, data, Step(tmp_path))
    cut, losses_of_cut = train_denoiser(spec.model_copy(update={"shards": 4}), data, Step(tmp_path))
    # Adam divides by |g|: where a gradient is all rounding, a weight may go anywhere within a step.
    for name, value in whole.state_dict().items():
        moved = (cut.state_dict()[name] - value).abs()
        assert moved.mean() < 2e-5, name
    assert_close(losses_of_cut, losses, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("shards", "devices"), [(1, 2), (4, 3), (4, 8)])
def test_more_devices_than_can_share_the_shards_are_one_line(shards: int, devices: int) -> None:
    step = SimpleNamespace(label="some_teacher", devices=devices, meeting=None)
    with (
        pytest.raises(UserError, match=rf"^some_teacher: devices {devices} can't share its shards, {shards}, equally"),
        ranks_of(step, Hardware(shards=shards)),
    ):
        pass


def test_more_devices_than_gpus_are_one_line(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    step = SimpleNamespace(label="some_teacher", devices=4, rank=0, meeting=None)
    with (
        pytest.raises(UserError, match="^some_teacher: devices 4, but PyTorch .* finds 2 GPUs here; ask for more"),
        ranks_of(step, Hardware(shards=4, device="cuda")),
    ):
        pass
