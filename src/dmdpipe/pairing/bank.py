"""The noise bank: what teacher and every student share, each row from a random stream of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dmdpipe.data.rotations import haar_rotation
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmdpipe.artifacts.step import Step
    from dmdpipe.specs.diffusion import NoiseBankSpec


def noise_rows(dim: int, n: int, seed: int, purpose: str) -> NDArray[np.float32]:
    """Return standard normal noise [n, dim], float32.

    Row i is a function of dim, seed, purpose and i alone: it does not depend on n, on chunking, on the
    process or on the device. Philox is keyed by a hash of seed and purpose, and by i.
    """
    stream = derive_seed(seed, "noise", purpose)
    rows = np.empty((n, dim), np.float32)
    for i in range(n):
        key = np.array([stream, i], np.uint64)
        rows[i] = np.random.Generator(np.random.Philox(key=key)).standard_normal(dim)
    return rows


def noise_between(spec: NoiseBankSpec, steps: int) -> list[NDArray[np.float32]]:
    """Return the noise that a student of ``steps`` steps adds before each later one, over the paired bank: [N, d] each.

    Like every row of the bank, row i depends on nothing but dim, seed, step and i, so it is the same for every student.
    """
    return [noise_rows(spec.dim, spec.n_paired, spec.seed, f"between/{step}") for step in range(2, steps + 1)]


def make_noise_bank(step: Step) -> None:
    """Write ``noise.safetensors`` for the step's ``NoiseBankSpec``, all float32.

    ``paired`` [N, d], ``held_out`` [M, d], ``reference`` [R, N, d] and ``rotation`` [d, d].
    """
    spec = step.spec
    reference = [noise_rows(spec.dim, spec.n_paired, spec.seed, f"reference/{r}") for r in range(spec.n_reference_sets)]
    step.write_tensors(
        "noise.safetensors",
        {
            "paired": noise_rows(spec.dim, spec.n_paired, spec.seed, "paired"),
            "held_out": noise_rows(spec.dim, spec.n_held_out, spec.seed, "held_out"),
            "reference": np.stack(reference),
            "rotation": haar_rotation(spec.dim, spec.seed).astype(np.float32),
        },
    )
