"""``trtfleet doctor``: what this machine has, which backend ``auto`` takes on it, and which ones work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..trt_actors.building.flavour import FLAVOURS
from ..trt_actors.machine import look
from ..trt_actors.runtime.libcuda import GpuInfo

__all__ = ["Doctor", "Trial", "examine"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One backend tried on a small network.

    Attributes:
        backend: Its name.
        works: Whether it ran and agreed with ONNX Runtime on the CPU; None when it is not available.
        words: The largest difference, or why not.
    """

    backend: str
    works: bool | None
    words: str


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """What was found.

    Attributes:
        python: Version and platform.
        packages: Installed versions, by distribution.
        gpus: The visible GPUs in words; empty with the reason in ``no_gpu``.
        no_gpu: Why there are none.
        flavours: Version of each TensorRT flavour, or why it cannot be used.
        backends: For each backend why it cannot be used here; empty when it can.
        takes: What ``auto`` takes.
        trials: What the self-test found; empty without one.
    """

    python: str
    packages: dict[str, str]
    gpus: list[str]
    no_gpu: str
    flavours: dict[str, str]
    backends: dict[str, str]
    takes: str
    trials: list[Trial] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether no backend that is available failed its trial."""
        return all(trial.works is not False for trial in self.trials)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {**asdict(self), "is_well": self.is_well}

    def lines(self) -> list[str]:
        """Everything in words."""
        lines = [f"Python    {self.python}"]
        lines += [f"{name:<20} {version}" for name, version in self.packages.items()]
        lines += [f"GPU {number}     {gpu}" for number, gpu in enumerate(self.gpus)]
        if self.no_gpu:
            lines.append(f"GPU       none: {self.no_gpu}")
        lines += [f"{name:<20} {version}" for name, version in self.flavours.items()]
        lines += [
            f"backend {name:<16} {'not available: ' + reason if reason else 'available'}"
            for name, reason in self.backends.items()
        ]
        lines.append(f"auto takes {self.takes}")
        lines += [
            f"self-test {trial.backend:<20} "
            f"{'skipped' if trial.works is None else 'ok' if trial.works else 'FAILED'}: {trial.words}"
            for trial in self.trials
        ]
        return lines


def examine(selftest: Callable[[str], Trial] | None = None) -> Doctor:
    """Looks at this machine.

    Args:
        selftest: Tries one backend; nothing is tried without it.
    """
    found = look()
    return Doctor(
        python=f"{found.python} on {found.platform}, {sys.executable}",
        packages=dict(found.packages),
        gpus=[_in_words(gpu) for gpu in found.gpus],
        no_gpu=found.no_gpu,
        flavours={name: found.flavours.get(name) or found.no_flavours[name] for name in FLAVOURS},
        backends=dict(found.backends),
        takes=found.takes,
        trials=[
            selftest(name) if not reason else Trial(backend=name, works=None, words=reason)
            for name, reason in found.backends.items()
            if selftest is not None
        ],
    )


def _in_words(gpu: GpuInfo) -> str:
    return f"{gpu}, driver {gpu.driver or 'unknown'}, CUDA {gpu.cuda}"
