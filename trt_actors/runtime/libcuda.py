"""The CUDA driver's library by ctypes: what PyCUDA has no calls for, and what must work without PyCUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...datasets.storage import one_line
from ...errors import BackendError

__all__ = ["GpuInfo", "call", "driver_missing", "gpus"]

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
_VERSION_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class GpuInfo:
    """One visible GPU.

    Attributes:
        index: Its number among the visible ones.
        name: As the driver calls it.
        compute_capability: Major and minor.
        memory_bytes: All of its memory.
        cuda: The newest CUDA version that the driver supports, e.g. ``13.0``.
        driver: The driver's version, e.g. ``580.159.04``; empty when it cannot be read.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    cuda: str
    driver: str

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name}, compute capability {major}.{minor}, {self.memory_bytes / 2**30:.0f} GiB"


@cache
def _library() -> Any:
    return ctypes.CDLL(_LIBRARY)


def call(function: str, *arguments: Any) -> None:
    """Calls a function of the driver, which needs its context current if it needs one.

    Raises:
        BackendError: There is no driver, it is too old, or the call failed, with the driver's words.
    """
    try:
        entry = getattr(_library(), function)
    except OSError as error:
        raise BackendError(f"no NVIDIA driver: {one_line(error)}", "install the driver") from error
    except AttributeError as error:
        raise BackendError(f"the NVIDIA driver has no {function}", "install a newer driver") from error
    result = entry(*arguments)
    if result:
        raise BackendError(f"{function} failed: {_words(result)}", "see the driver's log (dmesg)")


def _words(result: int) -> str:
    text = ctypes.c_char_p()
    _library().cuGetErrorString(ctypes.c_int(result), ctypes.byref(text))
    return f"error {result}, {text.value.decode()}" if text.value else f"error {result}"


def driver_missing() -> str | None:
    """Why no GPU can be used in this process, or None when one can; makes no context."""
    try:
        return None if _count() else "the driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)"
    except BackendError as error:
        return error.fact


def gpus() -> list[GpuInfo]:
    """The visible GPUs; none where there is no driver. Makes no context."""
    if driver_missing() is not None:
        return []
    version = ctypes.c_int()
    call("cuDriverGetVersion", ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    driver = _driver_version()
    return [_describe(index, cuda, driver) for index in range(_count())]


def _count() -> int:
    call("cuInit", ctypes.c_uint(0))
    count = ctypes.c_int()
    call("cuDeviceGetCount", ctypes.byref(count))
    return count.value


def _describe(index: int, cuda: str, driver: str) -> GpuInfo:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return GpuInfo(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=(_attribute(_MAJOR, device), _attribute(_MINOR, device)),
        memory_bytes=memory.value,
        cuda=cuda,
        driver=driver,
    )


def _attribute(attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    return value.value


def _driver_version() -> str:
    try:
        words = _VERSION_FILE.read_text().split("\n", 1)[0].split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and "." in word), "")
