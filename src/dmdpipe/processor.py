"""What Linux says of this machine's processor."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first processor, by Linux' own keys; empty elsewhere."""
    try:
        first, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_extensions() -> frozenset[str]:
    """Return the instruction-set extensions of the first processor, in Linux' spelling: ``avx2``, ``avx512f``."""
    return frozenset(cpu_facts().get("flags", "").split())


def processor() -> str:
    """Return vendor, family and model of the processor, such as ``AuthenticAMD 25/17``; its kind where unknown."""
    facts = cpu_facts()
    if "vendor_id" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['vendor_id']} {facts.get('cpu family', '?')}/{facts.get('model', '?')}"
