"""What an actor would run a network with on this machine, found out without loading or building it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import CacheError
from .backends import BACKENDS, why_not
from .building.flavour import find_flavour
from .cache.store import EngineCache
from .cache.warmth import gpu_class
from .device_name import CPU
from .machine import host_memory
from .remembered import BatchMemory, batch_identity_of
from .runtime.cuda import cuda_missing
from .runtime.libcuda import GpuInfo, gpus
from .task import TensorRTSettings
from .tensorrt_backend import identity_here

__all__ = ["EngineState", "Expectation", "Inquiry", "expect"]

EngineState = Literal["cached", "to build", "not kept", "unknown", ""]

_FOR_ALL = "onnxruntime-cpu"
_Found = tuple[EngineState, str, int, str]
_NO_ENGINE: _Found = ("", "", 0, "")
_TOO_LARGE = "its weights are too large to be built into TensorRT engines"


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """What has to be known of a job.

    Attributes:
        backend: ``auto`` or one backend's name.
        has_gpu: Whether an actor is given a GPU.
        counts: Whether the network is observed for a calibration, which ONNX Runtime alone does.
        settings: How TensorRT engines are built and kept; None where none are.
        network: Digest of the network; empty while that is not known.
        is_external: Whether its weights lie outside.
    """

    backend: str
    has_gpu: bool
    counts: bool = False
    settings: TensorRTSettings | None = None
    network: str = ""
    is_external: bool = False


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What actors on one kind of machine would do.

    Attributes:
        device: The kind of GPU, or ``CPU``.
        backend: What would execute; empty where nothing can.
        not_taken: Why none of the better ones, or not the one asked for.
        flavour: The flavour of TensorRT with its version, where that is the backend.
        engine: Whether the cache has the TensorRT engine; empty where none is needed.
        engine_key: Its key in the cache.
        engine_bytes: Its size there.
        batch_size: Rows a batch that an earlier job found best; None where nothing is remembered.
        note: What keeps the cache from being read.
        memory_bytes: Host memory; 0 where that cannot be read.
        free_bytes: Of these, what is free; 0 likewise.
    """

    device: str
    backend: str
    not_taken: str = ""
    flavour: str = ""
    engine: EngineState = ""
    engine_key: str = ""
    engine_bytes: int = 0
    batch_size: int | None = None
    note: str = ""
    memory_bytes: int = 0
    free_bytes: int = 0


def expect(inquiry: Inquiry) -> Expectation:
    """Looks at this machine as an actor would; a backend that cannot take the network is known only later."""
    memory_bytes, free_bytes = host_memory()
    return replace(_expect(inquiry), memory_bytes=memory_bytes, free_bytes=free_bytes)


def _expect(inquiry: Inquiry) -> Expectation:
    visible = gpus() if inquiry.has_gpu else []
    gpu = visible[0] if visible else None
    device = CPU if gpu is None else gpu_class(gpu)
    names = BACKENDS[1:] if inquiry.backend == "auto" else (inquiry.backend,)
    reasons: list[str] = []
    for name in names:
        if name == "tensorrt" and inquiry.counts:
            continue
        reason = _why_not(inquiry, name, gpu)
        if reason is None:
            return _taken(inquiry, name, gpu, device, "; ".join(reasons))
        reasons.append(f"{name}: {reason}")
    return Expectation(device=device, backend="", not_taken="; ".join(reasons))


def _why_not(inquiry: Inquiry, name: str, gpu: GpuInfo | None) -> str | None:
    if gpu is None and name != _FOR_ALL:
        return "no GPU"
    if name == "tensorrt" and inquiry.is_external:
        return _TOO_LARGE
    reason = why_not(name, has_gpu=gpu is not None)
    if reason is None and inquiry.counts and name == "onnxruntime-cuda":
        return cuda_missing()
    return reason


def _taken(inquiry: Inquiry, name: str, gpu: GpuInfo | None, device: str, not_taken: str) -> Expectation:
    if inquiry.settings is None or gpu is None:
        return Expectation(device=device, backend=name, not_taken=not_taken)
    settings = inquiry.settings
    flavour, (engine, key, size_bytes, note) = "", _NO_ENGINE
    if name == "tensorrt":
        flavour = str(find_flavour())
        engine, key, size_bytes, note = _engine(inquiry.network, settings)
    batch_size, notes = None, [note]
    if settings.use_static and inquiry.network:
        running = find_flavour().name if name == "tensorrt" else name
        memory = BatchMemory(batch_identity_of(running, inquiry.network, settings, gpu), settings.cache)
        batch_size = memory.recall()
        notes += memory.notes
    return Expectation(
        device=device,
        backend=name,
        not_taken=not_taken,
        flavour=flavour,
        engine=engine,
        engine_key=key,
        engine_bytes=size_bytes,
        batch_size=batch_size,
        note="; ".join(filter(None, notes)),
    )


def _engine(network: str, settings: TensorRTSettings) -> _Found:
    """Whether the cache has an engine, its key and size, and what kept it from being looked for."""
    if not settings.use_static:
        return "not kept", "", 0, ""
    if not network:
        return "to build", "", 0, ""
    identity = identity_here(settings, network, find_flavour())
    if identity is None:
        return "unknown", "", 0, ""
    try:
        entry = EngineCache(settings.cache).find(identity)
    except CacheError as error:
        return "unknown", identity.key, 0, error.fact
    return ("to build", identity.key, 0, "") if entry is None else ("cached", entry.key, entry.size_bytes, "")
