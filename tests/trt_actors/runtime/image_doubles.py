"""What decodes and resizes images on a GPU, done by Pillow on a device double."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from trtfleet.datasets.orientation import TURNS
from trtfleet.tests.trt_actors.runtime.device_double import BufferDouble, DeviceDouble, of
from trtfleet.trt_actors.runtime.device import Stream
from trtfleet.trt_actors.runtime.image_decoder import ImageDecoder
from trtfleet.trt_actors.runtime.resize import Frame, ImageLayout


class CodecDouble:
    """Decodes with Pillow; frames are only valid until the next call, as their memory comes from the stream.

    Args:
        device: Open.
        refuses: Images that it does not decode.
    """

    def __init__(self, device: DeviceDouble, refuses: Callable[[bytes], bool] = lambda data: False) -> None:
        self._device = device
        self._refuses = refuses
        self._frames: list[BufferDouble] = []
        self.calls: list[int] = []

    def decode(self, encoded: Sequence[memoryview], stream: Stream) -> list[Frame | None]:
        self.close()
        self.calls.append(len(encoded))
        return [self._frame(bytes(data), stream) for data in encoded]

    def _frame(self, data: bytes, stream: Any) -> Frame | None:
        if self._refuses(data):
            return None
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        height, width, _ = pixels.shape
        row_bytes = 3 * width + 5
        buffer = self._device.allocate(height * row_bytes)
        self._frames.append(buffer)

        def fill() -> None:
            rows = self._device.memory(buffer.pointer, height * row_bytes).reshape(height, row_bytes)
            rows[:, : 3 * width] = pixels.reshape(height, -1)

        of(stream).add(fill)
        return Frame(pointer=buffer.pointer, row_bytes=row_bytes, height=height, width=width)

    def close(self) -> None:
        while self._frames:
            self._frames.pop().close()


class ScalerDouble:
    """Turns and resizes with Pillow."""

    def __init__(self, device: DeviceDouble) -> None:
        self._device = device
        self.is_closed = False

    def enqueue(
        self,
        frames: Sequence[Frame],
        orientations: Sequence[int],
        places: Sequence[int],
        layout: ImageLayout,
        images: int,
        stream: Stream,
    ) -> None:
        size = int(np.prod(layout.shape))

        def work() -> None:
            for frame, orientation, place in zip(frames, orientations, places, strict=True):
                memory = self._device.memory(frame.pointer, frame.height * frame.row_bytes)
                rows = memory.reshape(frame.height, frame.row_bytes)[:, : 3 * frame.width]
                image = Image.fromarray(rows.reshape(frame.height, frame.width, 3).copy())
                turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image
                resized = turned.resize((layout.width, layout.height), Image.Resampling.BILINEAR)
                target = self._device.memory(images + place * size, size)
                target[:] = np.asarray(resized).transpose(layout.axes).reshape(-1)

        of(stream).add(work)

    def close(self) -> None:
        self.is_closed = True


def copy_on(device: DeviceDouble) -> Callable[[int, int, int, Stream], None]:
    """Copies on the device, in the stream's order."""

    def copy(target: int, source: int, size_bytes: int, stream: Stream) -> None:
        device.check_current()

        def work() -> None:
            device.memory(target, size_bytes)[:] = device.memory(source, size_bytes).copy()

        of(stream).add(work)

    return copy


def decoder_on(
    device: DeviceDouble, refuses: Callable[[bytes], bool] = lambda data: False, lanes: int = 2
) -> tuple[ImageDecoder, list[CodecDouble]]:
    """A decoder, and the codecs of its lanes."""
    codecs: list[CodecDouble] = []

    def make_codec(stream: Stream) -> CodecDouble:
        codecs.append(CodecDouble(device, refuses))
        return codecs[-1]

    decoder = ImageDecoder(
        device,
        make_codec=make_codec,
        make_scaler=lambda: ScalerDouble(device),
        copy=copy_on(device),
        lanes=lanes,
    )
    return decoder, codecs


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth image with some edges and a little noise, as photographs are."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [np.sin(8 * (x * a + y * b) + c) for a, b, c in random.normal(size=(3, 3))]
    pixels = 128 + 80 * np.stack(waves, axis=2) + random.normal(0, 4, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] += random.integers(-60, 60, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    """An image file, on request with an EXIF orientation."""
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    made = io.BytesIO()
    image.save(made, form, **options)
    return made.getvalue()
