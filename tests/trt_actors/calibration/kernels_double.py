"""The kernels of histogram.cu on a device in host memory, compiled by the host's compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble, Thing, of
from trtfleet.trt_actors.runtime.device import Stream

HERE = Path(__file__).resolve().parent
CALIBRATION = HERE.parents[2] / "trt_actors" / "calibration"

compiler = shutil.which("g++")


def compiled(folder: Path) -> ctypes.CDLL:
    """Compiles the kernels into a library below a folder."""
    assert compiler is not None
    library = folder / "histogram.so"
    command = [compiler, "-std=c++20", "-O2", "-shared", "-fPIC", "-pthread", f"-I{CALIBRATION}"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
    subprocess.run([*command, str(HERE / "histogram_on_host.cpp"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    for size in ("size_of_tensor", "size_of_work"):
        getattr(loaded, size).restype = ctypes.c_uint64
    return loaded


class KernelDevice(DeviceDouble):
    """A device double that executes the kernels, with few threads where a GPU has many.

    Args:
        library: The compiled kernels.
        threads: Of every block.
    """

    def __init__(self, library: ctypes.CDLL, *, threads: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.library = library
        self.threads = threads
        self.launches: list[tuple[str, int]] = []

    def module(self, ptx: bytes) -> KernelModule:
        self.check_current()
        assert b".entry range(" in ptx
        return KernelModule(self)


class KernelModule(Thing):
    """Launches kernels as work on a stream."""

    device: KernelDevice

    def launch(
        self,
        kernel: str,
        *arguments: np.generic,
        blocks: tuple[int, ...],
        threads: tuple[int, ...],
        stream: Stream,
    ) -> None:
        self.device.check_current()
        assert self in self.device.alive, "a kernel is launched after it was unloaded"
        assert len(blocks) == len(threads) == 1
        assert 0 < threads[0] <= 512
        assert threads[0] % 32 == 0
        assert 0 < blocks[0] < 1 << 31
        library = self.device.library
        kept: list[Any] = []
        for argument in arguments:
            if isinstance(argument, np.void):
                assert argument.itemsize == library.size_of_work()
                kept.append(ctypes.create_string_buffer(bytes(argument), argument.itemsize))
            else:
                types = {np.uint32: ctypes.c_uint32, np.uint64: ctypes.c_uint64}
                kept.append(types[type(argument)](int(argument)))
        self.device.launches.append((kernel, blocks[0]))
        entry = getattr(library, f"launch_{kernel}")
        grid = (ctypes.c_uint(blocks[0]), ctypes.c_uint(self.device.threads))
        of(stream).add(lambda: entry(*grid, *kept))
