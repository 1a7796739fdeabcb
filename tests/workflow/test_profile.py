"""The profile of a run on one machine: U-Nets take turns on its card, and nothing waits for them."""

from __future__ import annotations

import os
import sys

import pytest
from checkouts import Checkout

pytestmark = pytest.mark.workflow

# The first U-Net goes on until a step has run that Snakemake can only start after it has chosen what runs beside it.
SNAKEFILE = """
rule all:
    input: "unet0", "unet1", "after"

rule unet:
    output: "unet{i}"
    resources: large_on_gpu=1
    shell: "mkdir busy && {{ ! mkdir first || cat end_of_others; }} && rmdir busy && touch {output}"

rule before:
    output: "before"
    resources: large_on_gpu=0
    shell: "touch {output}"

rule after:
    input: "before"
    output: "after"
    resources: large_on_gpu=0
    shell: "echo > end_of_others && touch {output}"
"""


def test_unets_take_turns_on_the_card_and_other_steps_run_beside_them(checkout: Checkout) -> None:
    (checkout / "Snakefile").write_text(SNAKEFILE)
    os.mkfifo(checkout / "end_of_others")
    done = checkout.run([sys.executable, "-m", "snakemake", "--cores", "4"], 100, {})
    assert done.returncode == 0, done.stdout + done.stderr
