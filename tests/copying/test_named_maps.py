"""The distances to named maps of students without a network."""

from __future__ import annotations

import numpy as np
import torch

from dmdpipe.copying.maps import MAP_CONSTANTS, measure_maps
from dmdpipe.copying.pairing_metrics import relative_pair_error
from dmdpipe.diffusion.teacher import load_teacher
from dmdpipe.distill.loop import distil
from dmdpipe.networks.denoiser import build_network
from dmdpipe.pairing.bank import make_noise_bank
from dmdpipe.pairing.maps import pair_samples, sample_teacher
from dmdpipe.specs.data import Moons
from dmdpipe.specs.diffusion import NoiseBankSpec, TeacherSamplesSpec, TeacherSpec, TrainedScore
from dmdpipe.specs.network import MLP
from dmdpipe.specs.pairs import MapsSpec, PairsSpec
from dmdpipe.specs.student import StudentSpec

SMALL = MLP(width=8, depth=1, embedding=4)
TEACHER = TeacherSpec(data=Moons(), score=TrainedScore(network=SMALL))
BANK = NoiseBankSpec(dim=2, n_paired=40, n_held_out=60, n_reference_sets=2)
MODEL = {name: value.numpy() for name, value in build_network(SMALL, 2, seed=77).state_dict().items()}
SAMPLES = TeacherSamplesSpec(teacher=TEACHER, bank=BANK, sampler={"steps": 8})


class Step:
    """What a step's function sees: the spec, the parents' tensors by role, and where it writes."""

    def __init__(self, spec, **parents):
        self.spec, self.parents, self.written = spec, parents, {}

    def read_tensors(self, role, name):
        return {key: array.copy() for key, array in self.parents[role].items()}

    def write_tensors(self, name, tensors):
        self.written |= tensors

    def write_table(self, name, table):
        self.written["table"] = table

    def progress(self, done, total):
        pass


def made(function, spec, **parents):
    step = Step(spec, **parents)
    function(step)
    return step.written


def maps_of(noise, samples, **fields):
    """The table of one student, and its pairs."""
    quick = {"learning_rate": 1e-2, "warmup": 0}
    fields = {"network": SMALL, "recipe": {"generator": quick, "fake_score": quick}} | fields
    spec = StudentSpec(teacher=TEACHER, batch=8, generator_steps=5, snapshots=3, **fields)
    pairs_spec = PairsSpec(student=spec, teacher_samples=SAMPLES)
    snapshots, _ = distil(spec, load_teacher(TEACHER, MODEL), paired=torch.from_numpy(noise["paired"]))
    student = {name: value.numpy() for name, value in snapshots.items()}
    parents = {"student": student, "noise": noise, "teacher_samples": samples, "teacher": MODEL}
    pairs = made(pair_samples, pairs_spec, **parents)
    spec = MapsSpec(pairs=pairs_spec, particles=50, flow_steps=20)
    table = made(measure_maps, spec, **parents, pairs=pairs)["table"]
    return table.pivot(index="generator_step", columns="metric", values="value"), pairs


def test_particles_are_measured_against_the_maps_of_a_network_with_their_start_and_have_no_jacobian():
    noise = made(make_noise_bank, BANK)
    samples = made(sample_teacher, SAMPLES, noise=noise, teacher=MODEL)
    start = {"init": {"kind": "random-head"}, "seed": 4}
    of_network, _ = maps_of(noise, samples, **start)
    of_particles, pairs = maps_of(noise, samples, **start, network={"kind": "particles", "count": 50}, bank=BANK)
    assert of_particles[list(MAP_CONSTANTS)].equals(of_network[list(MAP_CONSTANTS)])
    # Before the first step the answers are the network's, to rounding; afterwards they are their own.
    own = ["rho_gaussian_transport", "rho_linear", "rho_transport"]
    np.testing.assert_allclose(of_particles.loc[0, own], of_network.loc[0, own], rtol=1e-4)
    assert (of_particles.loc[5, own] != of_network.loc[5, own]).all()
    assert of_particles["jacobian_asymmetry"].isna().all() and of_network["jacobian_asymmetry"].notna().all()
    assert relative_pair_error(pairs["student"][-1].astype(float), pairs["student"][0].astype(float)) > 0
