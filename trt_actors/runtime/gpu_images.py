"""The decoder of images on a GPU, where the engine, the columns and what is installed admit one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

from ...datasets.bound import ColumnBinding
from ...errors import BackendError
from ..engine import Engine
from .device import Device, Stream
from .image_decoder import Codec, ImageDecoder
from .libcuda import call
from .nvimgcodec import nvimgcodec_missing, open_codec
from .resize import Resizer
from .segmented import SegmentedEngine

__all__ = ["decoder_for", "gpu_decoder"]

_INSTALL = "pip install 'trtfleet[jpeg]'"


def decoder_for(
    engine: Engine, bindings: Iterable[ColumnBinding] | None, threads: int
) -> tuple[ImageDecoder | None, str]:
    """A decoder for an engine's images, which the caller closes before the engine.

    Args:
        engine: Open.
        bindings: What feeds it; None when that is not known yet.
        threads: CPU threads that may take part.

    Returns:
        The decoder or None; and why there is none although GPU and columns would admit one, else nothing.
    """
    device = engine.device if isinstance(engine, SegmentedEngine) else None
    if device is None or device.memory_kind != "cuda" or not any(map(ImageDecoder.takes, bindings or ())):
        return None, ""
    try:
        return gpu_decoder(device, threads), ""
    except BackendError as error:
        return None, f"images are decoded on the CPU: {error}"
    except MemoryError as error:
        return None, f"images are decoded on the CPU: no memory is left for it on the GPU ({error})"


def gpu_decoder(device: Device, threads: int) -> ImageDecoder:
    """A decoder on a GPU, by nvImageCodec and the kernels of ``resize.cu``.

    Args:
        device: The engine's, open.
        threads: CPU threads that take part in what the GPU's JPEG unit does not do.

    Raises:
        BackendError: nvImageCodec is not installed, or cannot be used with this GPU; the message says why.
    """
    missing = nvimgcodec_missing()
    if missing is not None:
        raise BackendError(missing, _INSTALL)

    def make_codec(stream: Stream) -> Codec:
        return open_codec(device.index, threads, stream)

    return ImageDecoder(device, make_codec=make_codec, make_scaler=lambda: Resizer(device), copy=_copy_on_gpu)


def _copy_on_gpu(target: int, source: int, size_bytes: int, stream: Stream) -> None:
    call(
        "cuMemcpyDtoDAsync_v2",
        ctypes.c_uint64(target),
        ctypes.c_uint64(source),
        ctypes.c_size_t(size_bytes),
        ctypes.c_void_p(stream.handle),
    )
