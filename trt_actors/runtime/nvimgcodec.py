"""nvImageCodec: JPEG images decoded on a GPU, by its own unit for it where it has one."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from ...datasets.storage import one_line
from ...errors import BackendError
from .device import Stream
from .libcuda import call
from .resize import Frame

__all__ = ["NvImageCodec", "nvimgcodec_missing", "open_codec"]

_INSTALL = "pip install 'trtfleet[jpeg]'"
# As the CPU's decoder interpolates colours, and with room for the images of a batch.
_OPTIONS = ":fancy_upsampling=1 nvjpeg_hw_decoder:preallocate_batch_size=256"
_RELEASE_THRESHOLD = 4
_KEPT_BYTES = 1 << 30


@cache
def _library() -> Any:
    """The library, or why it does not load."""
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        return f"nvImageCodec does not load: {one_line(error)}"


def nvimgcodec_missing() -> str | None:
    """Why JPEG cannot be decoded on a GPU here, or None when the library loads; makes no context."""
    found = _library()
    return found if isinstance(found, str) else None


def open_codec(device: int, threads: int, stream: Stream) -> NvImageCodec:
    """A codec that decodes here: by the GPU's JPEG unit alone, or by its kernels where there is none.

    Offered both, nvImageCodec 0.9 leaves most images to CPU threads and kernels, at a third of the unit's
    rate, once it has met one that the unit does not take. Those are better left to our own CPU decoder.

    Args:
        device: Index of the GPU; its primary context must be current.
        threads: CPU threads that take part where there is no unit.
        stream: Any of the device.

    Raises:
        BackendError: The library is not installed, or decodes no JPEG on this GPU.
    """
    try:
        return _checked(NvImageCodec(device, threads, ("HW_GPU_ONLY",)), stream)
    except BackendError:
        return _checked(NvImageCodec(device, threads, ("GPU_ONLY", "HYBRID_CPU_GPU")), stream)


def _checked(codec: NvImageCodec, stream: Stream) -> NvImageCodec:
    try:
        codec.check(stream)
    except BackendError:
        codec.close()
        raise
    return codec


class NvImageCodec:
    """Decodes on one stream, as RGB, not turned upright; for one thread at a time.

    Args:
        device: Index of the GPU; its primary context must be current in every call.
        threads: CPU threads that take part.
        kinds: What of the library may decode: names of its ``BackendKind``.

    Raises:
        BackendError: The library is not installed, or has no such decoder for this GPU.
    """

    def __init__(self, device: int, threads: int, kinds: Sequence[str]) -> None:
        missing = nvimgcodec_missing()
        if missing is not None:
            raise BackendError(missing, _INSTALL)
        self._nvimgcodec = _library()
        try:
            self._decoder: Any = self._nvimgcodec.Decoder(
                device_id=device,
                max_num_cpu_threads=max(threads, 1),
                backends=[
                    self._nvimgcodec.Backend(getattr(self._nvimgcodec.BackendKind, kind)) for kind in kinds
                ],
                options=_OPTIONS,
            )
            self._params = self._nvimgcodec.DecodeParams(
                apply_exif_orientation=False,
                color_spec=self._nvimgcodec.ColorSpec.SRGB,
                allow_any_depth=False,
            )
        except Exception as error:
            raise BackendError(f"nvImageCodec makes no decoder: {one_line(error)}", _INSTALL) from error
        _keep_memory(device)

    def check(self, stream: Stream) -> None:
        """Decodes an image of a usual size.

        Raises:
            BackendError: It cannot be decoded: mostly because nvJPEG is not installed.
        """
        made = io.BytesIO()
        Image.new("RGB", (320, 240), (9, 99, 199)).save(made, "JPEG")
        (frame,) = self.decode([memoryview(made.getvalue())], stream)
        stream.synchronize()
        if frame is None:
            raise BackendError("nvImageCodec decodes no JPEG here: is nvJPEG installed?", _INSTALL)

    def decode(self, encoded: Sequence[memoryview], stream: Stream) -> list[Frame | None]:
        """Decodes images; work that is added to the stream afterwards finds their pixels.

        Args:
            encoded: Whole JPEG images, borrowed until this returns.
            stream: Where the pixels are used; the memory of frames comes from it and goes back to it.

        Returns:
            A frame for each, or None where it cannot be decoded.
        """
        sources: list[Any] = []
        places: list[int] = []
        for place, data in enumerate(encoded):
            try:
                sources.append(self._nvimgcodec.CodeStream(np.frombuffer(data, np.uint8)))
            except Exception:
                continue
            places.append(place)
        found: list[Frame | None] = [None] * len(encoded)
        if not sources:
            return found
        try:
            images = self._decoder.decode(sources, params=self._params, cuda_stream=stream.handle)
        except Exception:
            # One image may have spoiled it for all: the CPU tells which.
            return found
        # An early release left out what it could not decode, without a word which.
        if len(images) == len(places):
            for place, image in zip(places, images, strict=True):
                found[place] = _frame(image)
        return found

    def close(self) -> None:
        """Drops the decoder; harmless when repeated."""
        self._decoder = None


def _frame(image: Any) -> Frame | None:
    if image is None:
        return None
    interface = image.__cuda_array_interface__
    height, width, channels = interface["shape"]
    if channels != 3 or interface["typestr"] not in ("|u1", "u1", "<u1"):
        return None
    strides = interface.get("strides")
    return Frame(
        pointer=int(interface["data"][0]),
        row_bytes=int(strides[0]) if strides else 3 * int(width),
        height=int(height),
        width=int(width),
        owner=image,
    )


def _keep_memory(device: int) -> None:
    """Lets the driver keep the memory of decoded images, which it would free at each synchronization."""
    handle, pool = ctypes.c_int(), ctypes.c_void_p()
    kept = ctypes.c_uint64(_KEPT_BYTES)
    with contextlib.suppress(BackendError):
        call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(device))
        call("cuDeviceGetDefaultMemPool", ctypes.byref(pool), handle)
        call("cuMemPoolSetAttribute", pool, ctypes.c_int(_RELEASE_THRESHOLD), ctypes.byref(kept))
