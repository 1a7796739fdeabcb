"""Particles: a student without a network, one free vector x_i for each noise z_i of a fixed set, S(z_i) = x_i.

They train in the same loop as every student. A batch is rows of the set instead of fresh noise, and its gradient goes
to these rows alone. What ties particles to one another is the fake score, and nothing else.

The optimiser takes that gradient as it takes a network's: whole, with zeros in the rows that were not drawn. Under SGD
without momentum and weight decay these rows stay as they are. Under AdamW their moments decay, the first one carries
them on for some steps, and weight decay pulls every particle towards 0, drawn or not. It is one optimiser for all
students, and keeps no count of a row's draws. A row that is drawn in a share p of the steps, with equal gradients, goes
1/√p rates a draw: the first moment hands on all of each gradient g, the second one is p·g². That holds while draws are
well within the second moment's memory, 1/(1 − β₂) steps, so for not many hundred batches' worth of particles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmdpipe.diffusion.determinism import CPU
from dmdpipe.distill.batches import RandomBatches
from dmdpipe.distill.initialisation import initialise
from dmdpipe.distill.student import Student, student_to_train
from dmdpipe.errors import UserError
from dmdpipe.kernels.noise import Stream
from dmdpipe.networks.pullback import Pullback
from dmdpipe.seeds import derive_seed

if TYPE_CHECKING:
    from dmdpipe.diffusion.teacher import Teacher
    from dmdpipe.specs.student import StudentSpec


class ParticleStudent(nn.Module):
    """S(z_i) = x_i, all x_i = 0 at first.

    Args:
        noise: the z_i [n, d], float32, all different.
        dtype: of the x_i.

    Attributes:
        particles: the x_i [n, d].
    """

    noise: Tensor

    def __init__(self, noise: Tensor, dtype: torch.dtype):
        super().__init__()
        self.particles = nn.Parameter(torch.zeros(noise.shape, dtype=dtype))
        self.register_buffer("noise", noise, persistent=False)

    def forward(self, asked: Tensor, between: Sequence[Tensor] = ()) -> Tensor:
        """Return particles [B, d].

        Args:
            asked: which: their rows [B], int64, or their noises [B, d].
            between: the noise before each later step, as for other students: there is none.

        Raises:
            UserError: if a noise is none of the set's.
            ValueError: if there is a later step.
        """
        if between:
            raise ValueError("particles make one step")
        rows = self.rows_of(asked) if asked.is_floating_point() else asked
        return self.particles.index_select(0, rows)

    @torch.no_grad()
    def with_pullback(self, rows: Tensor, between: Sequence[Tensor] = ()) -> tuple[Tensor, Pullback]:
        """Return particles [B, d] by their rows [B], and the pullback (``dmdpipe.networks.pullback``).

        It gives each drawn row the sum of its gradients, and every other one 0.
        """

        def pullback(to_answer: Tensor, add: bool = False) -> None:
            gradient = self.particles.grad
            assert gradient is not None
            if not add:
                gradient.zero_()
            gradient.index_add_(0, rows, to_answer)

        return self(rows, between), pullback

    def rows_of(self, z: Tensor) -> Tensor:
        """Return the rows [B], int64, of noises z [B, d], which must be equal to the set's to the bit.

        Raises:
            UserError: if one is none of the set's.
        """
        known = {z_i.tobytes(): row for row, z_i in enumerate(self.noise.to(z.dtype).cpu().numpy())}
        rows = [known.get(asked.tobytes(), -1) for asked in z.cpu().numpy()]
        if -1 in rows:
            raise UserError(
                f"student.network.kind 'particles': noise {rows.index(-1)} is none of the {len(known)} that have a"
                " particle; ask for the bank's paired noises, or take a student with a network"
            )
        return torch.tensor(rows, device=z.device)


class ParticleBatches(RandomBatches):
    """Batches of rows, drawn uniformly and independently: a row may be drawn twice. All else as for other students.

    Args:
        spec: as for ``RandomBatches``.
        particles: the student whose rows are drawn.
        device: where they are needed.
    """

    def __init__(self, spec: StudentSpec, particles: ParticleStudent, device: torch.device = CPU):
        self.count, dim = particles.noise.shape
        super().__init__(spec, dim, device)

    def latent(self, count: int = 1) -> Tensor:
        """Return rows [count·B], int64: those of the next ``count`` batches."""
        batches = [self.streams["latent"].integers(0, self.count, self.shape[0]) for _ in range(count)]
        return torch.cat(batches).to(self.device)


def build_particles(spec: StudentSpec, paired: Tensor) -> ParticleStudent:
    """Return particles, all at 0, for the bank's paired noises [N, d] and, after them, others of the student's seed."""
    assert spec.network.kind == "particles" and spec.bank
    if paired.shape != (spec.bank.n_paired, spec.bank.dim):
        raise ValueError(f"paired noises {list(paired.shape)} are not those of the student's bank")
    others = Stream(derive_seed(spec.seed, "student", "particles"))
    noise = torch.cat([paired, others.normal(spec.network.count - len(paired), spec.bank.dim)])
    return ParticleStudent(noise, getattr(torch, spec.dtype))


def started_network(spec: StudentSpec, teacher: Teacher, device: torch.device = CPU) -> Student:
    """Return S₀: a student of the teacher's network that is at its start, all else as the particles' spec says.

    Args:
        spec: the particles'.
        teacher: whose weights the start ``teacher`` copies, on the device.
        device: where S₀ is needed.
    """
    assert spec.teacher.score.kind == "trained"
    own = spec.model_copy(update={"network": spec.teacher.score.network, "bank": None})
    student = student_to_train(own, device)
    initialise(student, own, teacher, _no_pool)
    return student


def _no_pool(**_: object) -> Any:
    raise ValueError("no start of particles is made by a regression")


@torch.no_grad()
def particles_to_train(
    spec: StudentSpec, teacher: Teacher, paired: Tensor | None, device: torch.device
) -> tuple[ParticleStudent, ParticleBatches]:
    """Return particles at their start, x_i = S₀(z_i), and the batches that draw them, on a device.

    Args:
        spec: the particles'.
        teacher: D_teacher, on that device.
        paired: the bank's paired noises [N, d].
        device: where they train.

    Raises:
        ValueError: if there are no paired noises, or not as many as the bank has.
    """
    if paired is None:
        raise ValueError("particles need the bank's paired noises")
    student = build_particles(spec, paired).to(device)
    start = started_network(spec, teacher, device)
    student.particles.copy_(start(student.noise.to(student.particles.dtype)))
    return student, ParticleBatches(spec, student, device)
