"""The adversarial term: a discriminator that tells noised student samples from noised data, and its gradients.

As in DMD2 (arXiv 2405.14867, section 4.3; tianweiy/DMD2, EDM branch) the discriminator is a small head on the hidden
state of a denoiser, the fake score, and trains together with it. NVlabs/FastGen puts the head on the frozen teacher.

Unlike FastGen's, the discriminator's draws are its own, not those of the score's losses, and one bound on the
gradient's norm holds for fake score and head together, as in DMD2.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.distill.batches import RandomBatches
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


def discriminator_loss(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the discriminator's loss, mean of softplus(−l_real) + softplus(l_fake), and its gradients at the logits.

    The best logit at x is ln(p_real(x)/p_fake(x)), where the loss's mean is 2·ln 2 minus twice the Jensen–Shannon
    divergence; logits of 0 give 2·ln 2.

    Args:
        real: logits of noised data [B].
        fake: logits of noised student samples [B].

    Returns:
        The loss, and its gradients −sigmoid(−l_real)/B and sigmoid(l_fake)/B, [B] each.
    """
    loss = F.softplus(-real).mean() + F.softplus(fake).mean()
    return loss, -torch.sigmoid(-real) / len(real), torch.sigmoid(fake) / len(fake)


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
        return h
    h = network.hidden_state(given.c_in * noisy, given.features, (len(network.blocks) + 1) // 2)
    return h


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

    Attributes:
        trained: what learns from the discriminator's loss alone: the head, and the body if it is no fake score.
    """

    def __init__(
        self, spec: StudentSpec, teacher: Denoiser, fake: Denoiser | None, data: Tensor, batches: RandomBatches
    ):
        self.recipe: Recipe = spec.recipe
        self.data = data.to(batches.dtype)
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
        self.levels = self.body.conditions(batches.grid)

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's loss at its samples x [B, d], and the weighted loss's gradient at them [B, d]."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            logits = self._logits(at)
        loss, to_logits = generator_loss(logits.detach())
        (gradient,) = torch.autograd.grad(logits, at, self.recipe.adversarial_weight * to_logits)
        return loss, gradient

    def learn(self, x: Tensor) -> Tensor:
        """Return the discriminator's loss at samples x [B, d] and as many data, and set the weighted loss's gradients.

        They take the place of those in ``trained``; in a body that is a fake score they are added to what is there.
        """
        self.trained.zero_grad(set_to_none=False)
        rows = self.batches.streams["adversarial-data"].integers(0, len(self.data), len(x)).to(x.device)
        with torch.enable_grad():
            logits = self._logits(self.data.index_select(0, rows), x)
        loss, to_real, to_fake = discriminator_loss(*logits.detach().chunk(2))
        logits.backward(self.recipe.discriminator_weight * torch.cat([to_real, to_fake]))
        return loss

    def _logits(self, *samples: Tensor) -> Tensor:
        """Return the logits of batches of samples [B, d], each noised by draws of its own, one after the other."""
        drawn = [self.batches.diffusion("adversarial") for _ in samples]
        noisy = [torch.addcmul(x, own.sigma, own.noise) for x, own in zip(samples, drawn, strict=True)]
        levels = self.levels.at(torch.cat([own.rows for own in drawn]))
        logits: Tensor = self.head(hidden_state(self.body, torch.cat(noisy), levels)).squeeze(1)
        return logits
