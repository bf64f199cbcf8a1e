"""Which kind of device an engine runs on: what decides its engine, its batch size and its speed."""

from __future__ import annotations

import re

from .engine import Engine
from .runtime.libcuda import gpus

__all__ = ["CPU", "device_of", "slug_of"]

CPU = "CPU"


def device_of(engine: Engine) -> str:
    """The class of an open engine's device: ``CPU``, or a GPU's name with its compute capability."""
    visible = [] if engine.device_s is None else gpus()
    if not visible:
        return CPU
    major, minor = visible[0].compute_capability
    return f"{visible[0].name} ({major}.{minor})"


def slug_of(device: str) -> str:
    """The class as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
