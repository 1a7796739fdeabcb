"""Teacher training: denoising score matching with EDM's loss."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import start_device
from dmdpipe.diffusion.losses import denoising_loss, edm_weight
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.diffusion.shards import ALONE, Ranks, Shards
from dmdpipe.diffusion.sharing import ranks_of
from dmdpipe.diffusion.state import TrainingState
from dmdpipe.kernels.learning import Learner
from dmdpipe.kernels.noise import Stream
from dmdpipe.kernels.teacher import teacher_steps
from dmdpipe.networks.denoiser import Denoiser, build_network, zero_output_layer
from dmdpipe.networks.precision import in_precision
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.artifacts.step import Step
    from dmdpipe.diffusion.fresh import FreshSamples
    from dmdpipe.specs.diffusion import TrainedScore

HISTORY_EVERY = 50
TOGETHER = 16
"""So many steps go to C at once: their draws and noise levels are a few large calls instead of many small ones."""
PURPOSES = ("batches", "levels", "noise")


@torch.no_grad()
def train_denoiser(
    spec: TrainedScore,
    data: Tensor,
    step: Step,
    fresh: FreshSamples | None = None,
    labels: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> tuple[nn.Module, Tensor]:
    """Train a denoiser on ``data`` [n, d]; return its averaged (EMA) network and the loss history [H], on the CPU.

    With ``fresh``, every batch is drawn from there, and of ``data`` only the dimension counts. A network that is asked
    for classes learns them from the data's ``labels`` [n], int64. With several ``ranks``, each of these processes calls
    this; every one draws whole batches, and computes the gradients of its own shards.

    Each entry of the history is the mean loss of ``HISTORY_EVERY`` steps, the last one of those that are left.
    Resumes from the step's checkpoint if there is one; the result is the same to the byte. Batches and noise are drawn
    on the CPU, so that they are the same on every device.

    Raises:
        UserError: if the spec names a GPU and there is none.
    """
    device = start_device(spec, "score.device", ranks.number)
    data = data.to(device)
    network = build_network(spec.network, data.shape[1], derive_seed(spec.seed, "teacher", "init"))
    zero_output_layer(network)
    denoiser = in_precision(Denoiser(network.to(device)), spec.precision)
    optimiser = FlatOptimiser(FlatParameters(network))
    average = optimiser.parameters.values.clone()
    shards = Shards(spec.shards, spec.batch, ranks)
    purposes = [*PURPOSES, *(("fresh",) if fresh else ())]
    streams = {purpose: Stream(derive_seed(spec.seed, "teacher", purpose)) for purpose in purposes}
    losses = torch.zeros(-(-spec.steps // HISTORY_EVERY), device=device)
    state = TrainingState(
        step.resume,
        {"parameters": optimiser.parameters.values, "average": average, "losses": losses, **optimiser.state}
        | {f"streams/{purpose}": stream.position for purpose, stream in streams.items()},
        ranks,
    )

    def draw() -> tuple[Tensor, ...]:
        """Return a batch of data [B, d], its noise levels [B, 1], itself noised, and its classes [B] if it has some."""
        asked: tuple[Tensor, ...] = ()
        if fresh:
            x = fresh.draw(spec.batch, streams["batches"], streams["fresh"]).to(device)
        else:
            rows = streams["batches"].integers(0, len(data), spec.batch)
            x = data.index_select(0, rows.to(device))
            if labels is not None:
                asked = (labels.index_select(0, rows).to(device),)
        level = streams["levels"].normal(spec.batch, 1) * spec.log_sigma_std + spec.log_sigma_mean
        sigma = level.exp().to(device)
        return x, sigma, torch.addcmul(x, sigma, streams["noise"].normal(*x.shape).to(device)), *asked

    def denoising(x: Tensor, sigma: Tensor, noisy: Tensor, *asked: Tensor) -> dict[str, float | Tensor]:
        return {"loss": denoising_loss(denoiser, noisy, denoiser.conditions(sigma, *asked), x, edm_weight(sigma))}

    # A short average at the start, so that the zero output layer is forgotten.
    def share(i: int) -> float:
        return 1 - min(spec.ema, (i + 1) / (i + 10))

    def rate(i: int) -> float:
        return spec.learning_rate * min(1.0, (i + 1) / max(1, spec.warmup))

    compiled = denoiser.compiled(data) if shards.count == 1 else None
    done = state.resume(spec.steps)
    while done < spec.steps:
        steps = range(done, min(done + (TOGETHER if compiled else 1), spec.steps))
        x, sigma, noisy, *asked = map(torch.cat, zip(*(draw() for _ in steps), strict=True))
        if compiled:
            learner = Learner(compiled, denoiser.conditions(sigma, *asked), optimiser.flat())
            sizes = optimiser.begin_steps([rate(i) for i in steps])
            told = noisy, x, edm_weight(sigma), sizes, average, [share(i) for i in steps]
            of_steps: list[float | Tensor] = [*teacher_steps(learner, *told).tolist()]
        else:
            of_shards = (denoising(*(each[own] for each in (x, sigma, noisy, *asked))) for own in shards.own)
            of_steps = [shards.mean(optimiser.parameters.gradient, of_shards)["loss"]]
            optimiser.step(rate(done))
            average.lerp_(optimiser.parameters.values, share(done))
        for i, loss in zip(steps, of_steps, strict=True):
            entry = i // HISTORY_EVERY
            losses[entry] += loss / min(HISTORY_EVERY, spec.steps - entry * HISTORY_EVERY)
        done = steps.stop
        step.progress(done, spec.steps)
        state.save_now_and_then(done)
    optimiser.parameters.values.copy_(average)
    return network.requires_grad_(False).cpu(), losses.cpu()


def train_teacher(step: Step) -> None:
    """The ``teacher`` step: train on the prepared data and store the averaged network and the loss history.

    An exact teacher needs no training: its model is the mixture that the data step stored.
    """
    import pandas as pd

    arrays = step.read_tensors("data", "data.safetensors")
    score = step.spec.score
    if score.kind == "exact":
        step.write_tensors("model.safetensors", {k: v for k, v in arrays.items() if k.startswith("exact.")})
        losses = torch.zeros(0)
    else:
        fresh = None
        if score.samples == "fresh":
            # By name, so that an edit of it does not touch the teachers of finite pools.
            fresh = import_module("dmdpipe.diffusion.fresh").FreshSamples(arrays)
        labels = torch.from_numpy(arrays["labels"]) if score.network.classes else None
        with ranks_of(step, score) as ranks:
            average, losses = train_denoiser(score, torch.from_numpy(arrays["train"]), step, fresh, labels, ranks)
        step.write_tensors("model.safetensors", {k: v.numpy() for k, v in average.state_dict().items()})
    steps = [min((i + 1) * HISTORY_EVERY, score.steps) for i in range(len(losses))] if len(losses) else []
    step.write_table("history.parquet", pd.DataFrame({"step": steps, "loss": losses.double().numpy()}))
