"""A teacher's training on a GPU: everything but noise and checkpoints lies there, and it is the same training."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from pretended_gpu import GPU, pretended_gpu
from torch.testing import assert_close

from dmdpipe.diffusion import state
from dmdpipe.diffusion.determinism import exact_torch, start_device
from dmdpipe.diffusion.training import train_denoiser
from dmdpipe.errors import UserError
from dmdpipe.specs.diffusion import TrainedScore
from dmdpipe.specs.network import MLP

SPEC = TrainedScore(network=MLP(width=8, depth=2, embedding=4), steps=12, batch=8, ema=0.6, device="cuda")
DATA = torch.from_numpy(np.random.default_rng(0).normal(0, 0.5, (50, 2)).astype(np.float32))


class KilledError(Exception):
    pass


class Step:
    def __init__(self, folder, killed_at=None):
        self.resume, self.killed_at = folder, killed_at

    def progress(self, done, total):
        if done == self.killed_at:
            raise KilledError


def trained(spec, step):
    network, losses = train_denoiser(spec, DATA, step)
    return {**network.state_dict(), "losses": losses}


def test_tensors_on_two_devices_are_refused_and_noise_drawn_there_is_too():
    """The instrument of these tests sees what it is there for."""
    with pretended_gpu() as gpu, torch.no_grad():
        x = DATA.to(GPU)
        assert gpu.operations and x.device == GPU and (2 * x).cpu().equal(2 * DATA)
        x[0] = 7.0
        assert x.cpu()[0].tolist() == [7, 7] and float(x[0, 1]) == 7
        with pytest.raises(RuntimeError, match="two devices"):
            x + DATA
        with pytest.raises(RuntimeError, match="draws on the GPU"):
            torch.randn_like(x)
        with pytest.raises(RuntimeError, match="draws on the GPU"):
            torch.randn(3, device=GPU)
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()


def test_a_teacher_trained_on_a_gpu_is_the_same_and_comes_back(tmp_path):
    with pretended_gpu() as gpu:
        there = trained(SPEC, Step(tmp_path / "gpu"))
        assert gpu.operations > 12 * 40
    here = trained(SPEC.model_copy(update={"device": "cpu"}), Step(tmp_path / "cpu"))
    for name, value in here.items():
        assert_close(there[name], value, atol=1e-5, rtol=1e-4)


def test_a_killed_training_on_a_gpu_ends_in_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    with pretended_gpu():
        whole = trained(SPEC, Step(tmp_path / "whole"))
        with pytest.raises(KilledError):
            trained(SPEC, Step(tmp_path / "killed", 7))
        again = trained(SPEC, Step(tmp_path / "killed"))
    assert all(value.equal(again[name]) for name, value in whole.items())


def test_a_gpu_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^score\.device: 'cuda', but PyTorch .* no GPU here; set it to cpu"):
        trained(SPEC, Step(tmp_path))


def test_only_a_spec_that_says_so_allows_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    # PyTorch has a switch for matrix products and one for convolutions, and leaves that one on.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        allowed = {}
        for precision in ("tf32", "full", "bf16"):
            assert start_device(SPEC.model_copy(update={"precision": precision}), "score.device") == GPU
            allowed[precision] = {torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}
    finally:
        exact_torch(threads=1)
    assert allowed == {"tf32": {True}, "full": {False}, "bf16": {False}}
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.get_deterministic_debug_mode() == 2
