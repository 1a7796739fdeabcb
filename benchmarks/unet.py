"""How long is an update of a U-Net, forward and backward? The numbers by which `dmdpipe.cost` estimates.

    ./run exec python benchmarks/unet.py
    ./run exec python benchmarks/unet.py --device cuda --batch 256 --precision bf16

Printed for each side of grey images: the median time of an update, and that over its multiplications.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from dmdpipe.copying.inference_cost import multiplications
from dmdpipe.diffusion.determinism import start_device
from dmdpipe.diffusion.optimiser import FlatOptimiser, FlatParameters
from dmdpipe.networks.denoiser import Denoiser, build_network
from dmdpipe.networks.precision import in_precision
from dmdpipe.networks.pullback import with_pullback
from dmdpipe.specs.hardware import Hardware
from dmdpipe.specs.network import UNet


@torch.no_grad()
def main() -> None:
    """Print a line for each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="full", choices=["full", "tf32", "bf16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--sides", type=int, nargs="+", default=[4, 14, 28])
    parser.add_argument("--updates", type=int, default=5, help="that are timed (5)")
    options = parser.parse_args()
    device = start_device(Hardware(device=options.device, precision=options.precision), "--device")
    spec = UNet(channels=options.channels)
    for side in options.sides:
        dim = side * side
        denoiser = in_precision(Denoiser(build_network(spec, dim, 0).to(device)), options.precision)
        optimiser = FlatOptimiser(FlatParameters(denoiser))
        x, sigma = torch.randn(options.batch, dim).to(device), torch.ones(options.batch, 1).to(device)
        times = []
        for _ in range(options.updates + 1):
            start = time.perf_counter()
            answer, pullback = with_pullback(denoiser, x, sigma)
            pullback(answer)
            # Its norm is read back, so it ends when the device has.
            optimiser.step(1e-4)
            times.append(time.perf_counter() - start)
        seconds, each = median(times[1:]), options.batch * multiplications(spec, dim)
        print(f"{side}x{side}: {1e3 * seconds:.1f} ms an update of {options.batch}, {seconds / each:.1e} s a product")


if __name__ == "__main__":
    main()
