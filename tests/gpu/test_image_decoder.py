"""JPEG images decoded and resized by a real GPU, held against Pillow; skipped where there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from trtfleet.datasets.bindings import BindingOptions, ColumnBinding, bind
from trtfleet.datasets.images import decode_images
from trtfleet.datasets.orientation import TURNS
from trtfleet.datasets.signature import TensorSpec
from trtfleet.tests.trt_actors.runtime.image_doubles import encoded, picture
from trtfleet.trt_actors.runtime.cuda import CudaDevice
from trtfleet.trt_actors.runtime.device import Stream
from trtfleet.trt_actors.runtime.device_rows import DeviceRows
from trtfleet.trt_actors.runtime.gpu_images import gpu_decoder
from trtfleet.trt_actors.runtime.image_decoder import ImageDecoder
from trtfleet.trt_actors.runtime.nvimgcodec import nvimgcodec_missing
from trtfleet.trt_actors.runtime.resize import Frame, ImageLayout, Resizer

pytestmark = pytest.mark.gpu("pycuda")
needs_codec = pytest.mark.skipif(nvimgcodec_missing() is not None, reason=str(nvimgcodec_missing()))


@pytest.fixture
def device() -> Iterator[CudaDevice]:
    made = CudaDevice().open()
    yield made
    made.close()


@pytest.fixture
def decoder(device: CudaDevice) -> Iterator[ImageDecoder]:
    made = gpu_decoder(device, threads=4)
    yield made
    made.close()


def resized(
    device: CudaDevice, images: list[np.ndarray], orientations: list[int], layout: ImageLayout
) -> np.ndarray:
    """What the kernels make of images with padded rows, put into their places backwards."""
    with device.current():
        stream, resizer = device.stream(), Resizer(device)
        size = int(np.prod(layout.shape))
        target, buffers, frames = device.allocate(size * len(images)), [], []
        for image in images:
            height, width, _ = image.shape
            rows = np.pad(image.reshape(height, -1), ((0, 0), (0, height % 7)), constant_values=99)
            buffers.append(device.allocate(rows.nbytes))
            device.upload(buffers[-1].pointer, np.ascontiguousarray(rows), stream)
            stream.synchronize()
            frames.append(
                Frame(pointer=buffers[-1].pointer, row_bytes=rows.shape[1], height=height, width=width)
            )
        places = list(range(len(images)))[::-1]
        for _ in range(2):
            resizer.enqueue(frames, orientations, places, layout, target.pointer, stream)
        found = np.empty((len(images), *layout.shape), np.uint8)
        device.download(found, target.pointer, stream)
        stream.synchronize()
        resizer.close()
        for thing in (target, *buffers, stream):
            thing.close()
    return found[::-1]


def by_pillow(image: np.ndarray, orientation: int, layout: ImageLayout) -> np.ndarray:
    """Along rows first, as the kernels do it and Pillow does but for much too tall images."""
    upright = Image.fromarray(image)
    if orientation in TURNS:
        upright = upright.transpose(TURNS[orientation])
    strip = upright.resize((layout.width, upright.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(strip.resize((layout.width, layout.height), Image.Resampling.BILINEAR))
    return pixels.transpose(layout.axes)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("size", [(224, 224), (37, 91), (1, 1)], ids=str)
def test_resizing_is_pillows_bit_for_bit(
    device: CudaDevice, size: tuple[int, int], axes: tuple[int, ...]
) -> None:
    random = np.random.default_rng(3)
    sizes = [(375, 500), (500, 375), (1, 1), (224, 224), (1, 640), (640, 1), (37, 91), (1200, 1801)]
    sizes += [tuple(random.integers(1, 400, 2).tolist()) for _ in range(24)]
    images = [random.integers(0, 256, (*each, 3), np.uint8) for each in sizes]
    orientations = [1 + place % 8 for place in range(len(images))]
    layout = ImageLayout(height=size[0], width=size[1], axes=axes)
    found = resized(device, images, orientations, layout)
    for place, image in enumerate(images):
        wanted = by_pillow(image, orientations[place], layout)
        np.testing.assert_array_equal(found[place], wanted, err_msg=f"{sizes[place]}, {orientations[place]}")


def column(images: list[bytes | None]) -> tuple[pa.RecordBatch, ColumnBinding]:
    batch = pa.record_batch({"image": pa.array(images, pa.binary())})
    spec = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=(224, 224, 3))
    return batch, bind(spec, ["image"], batch.schema, BindingOptions())


def downloaded(device: CudaDevice, rows: DeviceRows | np.ndarray) -> np.ndarray:
    assert isinstance(rows, DeviceRows)
    with device.current():
        stream: Stream = device.stream()
        target, found = device.allocate(int(np.prod(rows.shape))), np.empty(rows.shape, np.uint8)
        rows.copy_to(target.pointer, stream)
        device.download(found, target.pointer, stream)
        stream.synchronize()
        target.close()
        stream.close()
    return found


@needs_codec
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_pixels_are_near_those_of_the_cpu(
    device: CudaDevice, decoder: ImageDecoder, subsampling: str
) -> None:
    batch, binding = column(
        [
            encoded(
                picture(300 + 17 * place, 500 - 23 * place, place),
                subsampling=subsampling,
                quality=75 + place,
                orientation=1 + place % 8,
            )
            for place in range(16)
        ]
        + [encoded(picture(375, 500, 99).convert("L"))]
    )
    found = downloaded(device, decoder.decode(batch, binding).values).astype(int)
    wanted = decode_images(batch, binding).values.astype(int)
    assert decoder.on_device == len(batch)
    for place in range(len(batch)):
        difference = np.abs(found[place] - wanted[place])
        assert difference.mean() < 2, place
        assert difference.max() <= 32, place


@needs_codec
def test_bad_rows_are_those_of_the_cpu(device: CudaDevice, decoder: ImageDecoder) -> None:
    good = encoded(picture(200, 300))
    random = np.random.default_rng(5)
    images: list[bytes | None] = [
        good,
        None,
        b"nonsense",
        good[: len(good) // 2],
        encoded(picture(200, 300), "PNG"),
        encoded(picture(200, 300), progressive=True),
        encoded(picture(200, 300).convert("CMYK")),
    ]
    for _ in range(120):
        damaged = bytearray(good)
        for place in random.integers(2, len(good), random.integers(1, 6)):
            damaged[place] = random.integers(0, 256)
        images.append(bytes(damaged))
    batch, binding = column(images)
    found, wanted = decoder.decode(batch, binding), decode_images(batch, binding)
    assert found.bad == wanted.bad
    assert decoder.on_device > 60
    # What went to the CPU is exactly what the CPU makes of it.
    pixels = downloaded(device, found.values)
    np.testing.assert_array_equal(pixels[4:7], wanted.values[4:7])


@needs_codec
def test_threads_decode_at_once(device: CudaDevice, decoder: ImageDecoder) -> None:
    batches = [
        column([encoded(picture(240, 320, 8 * turn + seed)) for seed in range(8)]) for turn in range(8)
    ]
    found: dict[int, np.ndarray] = {}

    def work(turn: int) -> None:
        for _ in range(3):
            found[turn] = downloaded(device, decoder.decode(*batches[turn]).values)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn, (batch, binding) in enumerate(batches):
        wanted = decode_images(batch, binding).values.astype(int)
        assert np.abs(found[turn] - wanted).mean() < 2


@needs_codec
def test_the_same_images_give_the_same_pixels(device: CudaDevice, decoder: ImageDecoder) -> None:
    batch, binding = column([encoded(picture(375, 500, seed), quality=90) for seed in range(64)])
    first = downloaded(device, decoder.decode(batch, binding).values)
    for _ in range(4):
        np.testing.assert_array_equal(downloaded(device, decoder.decode(batch, binding).values), first)
    few, _ = column([batch["image"][place].as_py() for place in range(5)])
    np.testing.assert_array_equal(downloaded(device, decoder.decode(few, binding).values), first[:5])
