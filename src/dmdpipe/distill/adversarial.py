"""The adversarial term: a discriminator that tells noised student samples from noised data, and its gradients.

As in DMD2 (arXiv 2405.14867, section 4.3; tianweiy/DMD2, EDM branch) the discriminator is a small head on the hidden
state of a denoiser, the fake score, and trains together with it. NVlabs/FastGen puts the head on the frozen teacher.

Unlike FastGen's, the discriminator's draws are its own, not those of the score's losses, and one bound on the
gradient's norm holds for fake score and head together, as in DMD2.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmdpipe.kernels.discriminator import CompiledDiscriminator
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.distill.batches import RandomBatches
    from dmdpipe.kernels.conditions import Conditions
    from dmdpipe.networks.denoiser import Denoiser
    from dmdpipe.specs.student import Recipe, StudentSpec


def generator_loss(fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the student's loss, mean of softplus(−l) over logits l of its samples, and its gradient at them.

    Softplus(−l) is −ln P(real), the non-saturating loss (arXiv 1406.2661).

    Args:
        fake: logits of noised student samples [B]; large where they pass for data.

    Returns:
        The loss, and −sigmoid(−l)/B [B].
    """
    return F.softplus(-fake).mean(), -torch.sigmoid(-fake) / len(fake)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss, mean of softplus(−l_real) + softplus(l_fake).

    The best logit at x is ln(p_real(x)/p_fake(x)), where the loss's mean is 2·ln 2 minus twice the Jensen–Shannon
    divergence; logits of 0 give 2·ln 2.

    Args:
        real: logits of noised data [B].
        fake: logits of noised student samples [B].
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def discriminator_gradients(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return that loss's gradients at the logits, −sigmoid(−l_real)/B and sigmoid(l_fake)/B, [B] each."""
    return -torch.sigmoid(-real) / len(real), torch.sigmoid(fake) / len(fake)


@cache
def signs(batch: int) -> Tensor:
    """Return −1 for so many data, whose logits should be large, and 1 for as many samples after them [2·batch]."""
    return torch.tensor([-1.0, 1.0]).repeat_interleave(batch)


def hidden_state(denoiser: Denoiser, noisy: Tensor, sigma: Any) -> Tensor:
    """Return what the first half of a denoiser's network makes of noisy samples [B, d].

    DMD2 reads the U-Net's bottleneck, the middle of the network: [B, C, h, w]. Of an MLP it is what the first half of
    its blocks, rounded up, makes: [B, width]. What comes after it learns from the denoising loss alone. In single
    precision at least, as there.

    Args:
        denoiser: an MLP or a U-Net inside its preconditioning.
        noisy: x + σ·ε [B, d].
        sigma: σ [B, 1], or the ``conditions`` of these levels.
    """
    network: Any = denoiser.network
    given = denoiser.told(sigma).looked_up()
    h: Tensor
    if hasattr(network, "middle"):
        h = network.middle(given.c_in * noisy, given.features)
    else:
        h = network.hidden_state(given.c_in * noisy, given.features, blocks_read(network))
    return h


def blocks_read(network: Any) -> int:
    """Return how many residual blocks of an MLP come before the hidden state that a discriminator reads."""
    return (len(network.blocks) + 1) // 2


def build_head(width: int, seed: int, side: int | None = None) -> nn.Sequential:
    """Return the head [B, width] → [B, 1], or [B, width, side, side] → [B, 1].

    DMD2's convolutions, norms and SiLUs: one convolution that halves the side, one over all that is left, and one of a
    single position. Without a side, the same at a single position.

    Args:
        width: of the hidden state, or its channels.
        seed: draws the weights, by PyTorch's default initialisation.
        side: of the hidden state, if it has one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        if side is None:
            for _ in range(2):
                layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU()]
            return nn.Sequential(*layers, nn.Linear(width, 1))
        halving = nn.Conv2d(width, width, 4, stride=2, padding=1) if side > 1 else nn.Conv2d(width, width, 1)
        for layer in (halving, nn.Conv2d(width, width, max(1, side // 2))):
            # Groups of four channels or more: what is left is one position.
            layers += [layer, nn.GroupNorm(math.gcd(width // 4, 32), width), nn.SiLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, 1, 1), nn.Flatten())


class Adversary:
    """The discriminator of one distillation, and what it draws.

    Args:
        spec: the student's, for the recipe, the seed and the dtype.
        teacher: D_teacher, frozen.
        fake: D_fake if the recipe trains one to denoise; else the discriminator has a copy of the teacher to itself.
        data: what the teacher trained on [n, d], on the student's device.
        batches: where noise, noise levels and rows of the data come from.
        labels: the data's classes [n], if the teacher is asked for classes.

    Attributes:
        trained: what learns from the discriminator's loss alone: the head, and the body if it is no fake score.
    """

    def __init__(
        self,
        spec: StudentSpec,
        teacher: Denoiser,
        fake: Denoiser | None,
        data: Tensor,
        batches: RandomBatches,
        labels: Tensor | None = None,
    ):
        self.recipe: Recipe = spec.recipe
        self.data = data.to(batches.dtype)
        self.labels = () if labels is None else (labels.to(batches.device),)
        self.batches = batches
        network: Any = teacher.network
        seed = derive_seed(spec.seed, "student", "discriminator")
        if hasattr(network, "middle"):
            channels, side, _ = network.middle_shape
            head = build_head(channels, seed, side)
        else:
            head = build_head(network.input.out_features, seed)
        self.head = head.to(batches.device, batches.dtype)
        self.trained = nn.ModuleList([self.head])
        self.body = teacher
        if self.recipe.discriminator == "fake":
            self.body = copy.deepcopy(teacher).requires_grad_(True) if fake is None else fake
            if fake is None:
                self.trained.append(self.body)
        self._trained = list(self.trained.parameters())
        self.levels = self.body.levels(batches.grid)
        self.kernel = self._compiled_discriminator()

    def gradient(self, x: Tensor, *asked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's loss at its samples x [B, d], and the weighted loss's gradient at them [B, d].

        Args:
            x: the samples.
            asked: the class of each [B], if the student is asked for one.
        """
        noisy, levels = self._noised((x, *asked))
        weight = self.recipe.adversarial_weight
        if kernel := self._compiled(noisy):
            logits, gradient = kernel.gradient(noisy, levels, torch.full((len(x),), -1.0), weight / len(x))
            return generator_loss(logits)[0], gradient
        with torch.enable_grad():
            at = noisy.requires_grad_(True)
            logits = self._logits(at, levels)
        loss, to_logits = generator_loss(logits.detach())
        (gradient,) = torch.autograd.grad(logits, at, weight * to_logits)
        return loss, gradient

    def learn(self, x: Tensor, *asked: Tensor) -> Tensor:
        """Return the discriminator's loss at samples x [B, d] and as many data, and set the weighted loss's gradients.

        They take the place of those in ``trained``; in a body that is a fake score they are added to what is there.
        """
        for parameter in self._trained:
            if parameter.grad is not None:
                parameter.grad.zero_()
        rows = self.batches.rows_of("adversarial-data", len(self.data))
        data = tuple(each.index_select(0, rows) for each in (self.data, *self.labels))
        noisy, levels = self._noised(data, (x, *asked))
        weight = self.recipe.discriminator_weight
        if kernel := self._compiled(noisy):
            body_learns = self.recipe.discriminator == "fake"
            logits = kernel.learn(noisy, levels, signs(len(x)), weight / len(x), body_learns)
            return discriminator_loss(*logits.chunk(2))
        with torch.enable_grad():
            logits = self._logits(noisy, levels)
        both = logits.detach().chunk(2)
        logits.backward(weight * torch.cat(discriminator_gradients(*both)))
        return discriminator_loss(*both)

    def _noised(self, *samples: tuple[Tensor, ...]) -> tuple[Tensor, Conditions]:
        """Return batches of samples [B, d], each noised by draws of its own, one after the other, and their conditions.

        A batch's classes [B], if there are any, stand beside its samples.
        """
        drawn = [self.batches.diffusion("adversarial") for _ in samples]
        noisy = [torch.addcmul(x, own.sigma, own.noise) for (x, *_), own in zip(samples, drawn, strict=True)]
        told = [(own.rows, *asked) for (_, *asked), own in zip(samples, drawn, strict=True)]
        return torch.cat(noisy), self.levels(*map(torch.cat, zip(*told, strict=True)))

    def _logits(self, noisy: Tensor, levels: Conditions) -> Tensor:
        logits: Tensor = self.head(hidden_state(self.body, noisy, levels)).squeeze(1)
        return logits

    def _compiled(self, noisy: Tensor) -> CompiledDiscriminator | None:
        return self.kernel if self.body.compiled(noisy) else None

    def _compiled_discriminator(self) -> CompiledDiscriminator | None:
        """Return what computes logits and gradients in C, where the body's denoiser has such a kernel."""
        if not self.body.kernel:
            return None
        network: Any = self.body.network
        body = self.body.kernel.layers[: 2 + blocks_read(network)]
        pairs: list[Any] = [(layer.weight, layer.bias) for layer in self.head if not isinstance(layer, nn.SiLU)]
        return CompiledDiscriminator(body, pairs[::2], pairs[1::2])
