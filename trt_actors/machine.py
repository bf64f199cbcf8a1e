"""What one machine has, as a process on it sees it: GPUs, runtimes and their versions, and memory."""

from __future__ import annotations

import importlib.metadata
import platform
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from .. import __version__
from ..errors import BackendError
from .backends import BACKENDS, why_not
from .building.flavour import FLAVOURS, Flavour, find_flavour, why_missing
from .runtime.libcuda import GpuInfo, driver_missing, gpus

__all__ = ["Machine", "host_memory", "look"]

_PACKAGES = ("ray", "onnx", "onnxruntime", "onnxruntime-gpu", "pycuda", "pyarrow", "numpy")
_MEMORY = Path("/proc/meminfo")
_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found.

    Attributes:
        host: Its name.
        python: Version of Python.
        platform: Operating system and architecture.
        trtfleet: Version of trtfleet.
        packages: Installed versions, by distribution.
        gpus: The visible GPUs.
        no_gpu: Why there are none; empty where there are.
        flavour: The TensorRT flavour that is used, with its version; empty where there is none.
        flavours: Version of each flavour that can be used.
        no_flavours: Why each of the others cannot.
        backends: For each backend why it cannot be used; empty where it can.
        takes: What ``auto`` takes.
        memory_bytes: Host memory, or the container's share of it; 0 where that cannot be read.
        free_bytes: Of these, what is free or can be freed; 0 where that cannot be read.
    """

    host: str = ""
    python: str = ""
    platform: str = ""
    trtfleet: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    gpus: tuple[GpuInfo, ...] = ()
    no_gpu: str = ""
    flavour: str = ""
    flavours: Mapping[str, str] = field(default_factory=dict)
    no_flavours: Mapping[str, str] = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    takes: str = ""
    memory_bytes: int = 0
    free_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what ``as_json`` gave, be it of another version of trtfleet, which knows less or more.

        Raises:
            ValueError: A GPU is described in another way.
        """
        known = {each.name for each in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}
        try:
            found["gpus"] = tuple(
                GpuInfo(**{**gpu, "compute_capability": tuple(gpu["compute_capability"])})
                for gpu in values.get("gpus", ())
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"a GPU is described by other words: {error}") from error
        return cls(**found)


def look() -> Machine:
    """Looks at this machine; takes seconds where TensorRT has to say whether it can use the GPU."""
    no_gpu = driver_missing() or ""
    found = () if no_gpu else tuple(gpus())
    reasons = {name: why_missing(name) for name in FLAVOURS}
    backends = {name: why_not(name, has_gpu=bool(found)) or "" for name in BACKENDS if name != "auto"}
    used = _flavour()
    memory_bytes, free_bytes = host_memory()
    return Machine(
        host=socket.gethostname(),
        python=platform.python_version(),
        platform=platform.platform(),
        trtfleet=__version__,
        packages=_versions(),
        gpus=found,
        no_gpu=no_gpu,
        flavour="" if used is None else str(used),
        flavours={name: find_flavour(name).version for name, reason in reasons.items() if reason is None},
        no_flavours={name: reason for name, reason in reasons.items() if reason is not None},
        backends=backends,
        takes=next((name for name, reason in backends.items() if not reason), "nothing"),
        memory_bytes=memory_bytes,
        free_bytes=free_bytes,
    )


def _flavour() -> Flavour | None:
    try:
        return find_flavour()
    except BackendError:
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host_memory() -> tuple[int, int]:
    """All and free bytes of host memory, within the limits of the container; zeros where nothing tells."""
    try:
        lines = (line.split() for line in _MEMORY.read_text().splitlines())
        kibibytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
    except (OSError, ValueError):
        return 0, 0
    total = kibibytes.get("MemTotal", 0) << 10
    free = kibibytes.get("MemAvailable", 0) << 10
    for most, used in _LIMITS:
        try:
            limit_bytes, used_bytes = int(most.read_text()), int(used.read_text())
        except (OSError, ValueError):
            # No such limit, or the word "max".
            continue
        if 0 < limit_bytes < total:
            total, free = limit_bytes, min(free, max(0, limit_bytes - used_bytes))
    return total, free
