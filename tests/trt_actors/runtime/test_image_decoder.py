"""Columns of images decoded on a device double: the same rows, the same bad rows, and whose memory it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trtfleet.datasets.bindings import BindingOptions, ColumnBinding, bind
from trtfleet.datasets.images import decode_images
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import BackendError
from trtfleet.tests.trt_actors.runtime.device_double import BufferDouble, DeviceDouble
from trtfleet.tests.trt_actors.runtime.image_doubles import decoder_on, encoded, picture
from trtfleet.trt_actors.runtime import gpu_images, image_decoder
from trtfleet.trt_actors.runtime.device_rows import DeviceRows
from trtfleet.trt_actors.runtime.gpu_images import decoder_for, gpu_decoder
from trtfleet.trt_actors.runtime.image_decoder import ImageDecoder
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram
from trtfleet.trt_actors.runtime.segmented import SegmentedEngine


@pytest.fixture(params=[True, False], ids=["late", "early"])
def device(request: pytest.FixtureRequest) -> Iterator[DeviceDouble]:
    made = DeviceDouble(lazy=request.param).open()
    yield made
    made.close()


def column(images: Sequence[bytes | None]) -> pa.RecordBatch:
    return pa.record_batch({"image": pa.array(images, pa.binary())})


def bound(batch: pa.RecordBatch, *shape: Any, dtype: Any = np.uint8, **options: Any) -> ColumnBinding:
    spec = TensorSpec(name="x", dtype=np.dtype(dtype), row_shape=shape)
    return bind(spec, ["image"], batch.schema, BindingOptions(**options))


def pixels(device: DeviceDouble, rows: DeviceRows | np.ndarray) -> np.ndarray:
    if isinstance(rows, np.ndarray):
        return rows
    with device.current():
        stream, target = device.stream(), device.allocate(max(int(np.prod(rows.shape)), 1))
        rows.copy_to(target.pointer, stream)
        stream.synchronize()
        found = target.array[: int(np.prod(rows.shape))].reshape(rows.shape).copy()
        target.close()
        stream.close()
    return found


_MIXED: list[bytes | None] = [
    encoded(picture(40, 60, 1)),
    encoded(picture(33, 21, 2), orientation=6),
    encoded(picture(20, 20, 3), "PNG"),
    b"nonsense",
    encoded(picture(50, 30, 4), progressive=True),
    None,
    encoded(picture(30, 50, 5), orientation=2),
    encoded(picture(30, 50, 6))[:-200],
    encoded(picture(16, 12, 7)),
    encoded(picture(16, 12, 8).convert("L"), quality=60),
    encoded(picture(9, 31, 9).convert("CMYK")),
]


@pytest.mark.parametrize("shape", [(16, 12, 3), (3, 16, 12)], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("fill_null", [None, 7])
def test_rows_and_bad_rows_are_those_of_the_cpu(
    device: DeviceDouble, shape: tuple[int, ...], fill_null: float | None
) -> None:
    decoder, codecs = decoder_on(device)
    for batch in (column(_MIXED), column(_MIXED).slice(1, 7)):
        binding = bound(batch, *shape, fill_null=fill_null)
        assert decoder.takes(binding)
        found, wanted = decoder.decode(batch, binding), decode_images(batch, binding)
        assert found.bad == wanted.bad
        assert isinstance(found.values, DeviceRows)
        good = np.delete(np.arange(len(batch)), [bad.row for bad in wanted.bad])
        np.testing.assert_array_equal(pixels(device, found.values[good]), wanted.values[good])
    assert (decoder.on_device, decoder.on_host) == (7, 11)
    assert sum(sum(codec.calls) for codec in codecs) == 7
    del found
    decoder.close()


def test_what_the_device_refuses_the_cpu_decodes(device: DeviceDouble) -> None:
    images = [encoded(picture(20, 30, seed)) for seed in range(6)]
    decoder, _ = decoder_on(device, refuses=lambda data: data in images[1:4])
    batch = column(images)
    found = decoder.decode(batch, bound(batch, 16, 12, 3))
    assert found.bad == ()
    wanted = decode_images(batch, bound(batch, 16, 12, 3)).values
    np.testing.assert_array_equal(pixels(device, found.values), wanted)
    assert (decoder.on_device, decoder.on_host) == (3, 3)
    decoder.close()


def test_a_column_without_plain_images_stays_on_the_host(device: DeviceDouble) -> None:
    decoder, codecs = decoder_on(device)
    for images in ([encoded(picture(20, 30), "PNG"), b"", None], [None], []):
        batch = column(images)
        found, wanted = (each.decode(batch, bound(batch, 8, 8, 3)) for each in (decoder, _Host()))
        assert found.bad == wanted.bad
        np.testing.assert_array_equal(found.values, wanted.values)
    assert [codec.calls for codec in codecs] == [[], []]
    decoder.close()


class _Host:
    def decode(self, batch: pa.RecordBatch, binding: ColumnBinding) -> Any:
        return decode_images(batch, binding)


def test_large_images_are_decoded_in_groups(device: DeviceDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_decoder, "MAX_PIXELS", 1500)
    decoder, codecs = decoder_on(device, lanes=1)
    batch = column([encoded(picture(20, 30, seed)) for seed in range(5)] + [encoded(picture(50, 50))])
    found = decoder.decode(batch, bound(batch, 8, 8, 3))
    assert codecs[0].calls == [2, 2, 1, 1]
    wanted = decode_images(batch, bound(batch, 8, 8, 3)).values
    np.testing.assert_array_equal(pixels(device, found.values), wanted)
    decoder.close()


def test_only_colour_images_of_one_size_in_bytes_are_taken() -> None:
    batch = column([encoded(picture(8, 8))])
    assert ImageDecoder.takes(bound(batch, 8, 8, 3))
    assert ImageDecoder.takes(bound(batch, "H", "W", 3, resize=(9, 7)))
    assert not ImageDecoder.takes(bound(batch, "H", "W", 3))
    assert not ImageDecoder.takes(bound(batch, 8, 8, 1))
    assert not ImageDecoder.takes(bound(batch, 8, 8, 3, dtype=np.float32))


def test_without_memory_on_the_device_the_cpu_decodes() -> None:
    device = DeviceDouble(limit_bytes=20_000).open()
    decoder, _ = decoder_on(device)
    batch = column([encoded(picture(40, 60, seed)) for seed in range(4)])
    found, wanted = decoder.decode(batch, bound(batch, 8, 8, 3)), _Host().decode(batch, bound(batch, 8, 8, 3))
    np.testing.assert_array_equal(found.values, wanted.values)
    small = column([encoded(picture(8, 8))])
    assert decoder.decode(small, bound(small, 8, 8, 3)).bad == ()
    decoder.close()
    device.close()


def test_threads_share_the_lanes(device: DeviceDouble) -> None:
    decoder, _ = decoder_on(device, lanes=2)
    batches = [column([encoded(picture(20, 30, 10 * turn + seed)) for seed in range(4)]) for turn in range(6)]
    found: dict[int, np.ndarray] = {}

    def work(turn: int) -> None:
        values = decoder.decode(batches[turn], bound(batches[turn], 8, 8, 3)).values
        found[turn] = pixels(device, values)

    threads = [threading.Thread(target=work, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn, batch in enumerate(batches):
        wanted = decode_images(batch, bound(batch, 8, 8, 3)).values
        np.testing.assert_array_equal(found[turn], wanted)
    decoder.close()


def test_memory_stays_bounded_and_is_all_given_back(device: DeviceDouble) -> None:
    decoder, _ = decoder_on(device, lanes=1)
    batch = column([encoded(picture(20, 30, seed)) for seed in range(4)])
    binding = bound(batch, 64, 64, 3)
    used = set()
    kept = decoder.decode(batch, binding).values
    for _ in range(5):
        kept = decoder.decode(batch, binding).values[1:3]
        used.add(device.used_bytes)
    assert len(used) == 1
    decoder.close()
    assert not [thing for thing in device.alive if isinstance(thing, BufferDouble)]
    assert len(kept) == 2


def test_a_codec_that_cannot_be_made_leaves_nothing(device: DeviceDouble) -> None:
    def fails(stream: Any) -> Any:
        raise BackendError("no codec", "")

    with pytest.raises(BackendError, match="no codec"):
        ImageDecoder(device, make_codec=fails, make_scaler=lambda: None, copy=lambda *_: None)  # type: ignore
    assert not device.alive


class CudaDouble(DeviceDouble):
    memory_kind = "cuda"


def engine_on(device: DeviceDouble | None) -> SegmentedEngine:
    segment = SegmentProgram(kind="native", inputs=("x",), outputs=("y",), onnx=b"never loaded")
    specs = [TensorSpec(name=name, dtype=np.dtype(np.uint8), row_shape=(8, 8, 3)) for name in "xy"]
    program = NetworkProgram(segments=(segment,))
    return SegmentedEngine(program, inputs=(specs[0],), outputs=(specs[1],), device=device)


def test_a_decoder_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_images, "nvimgcodec_missing", lambda: "nvImageCodec does not load: no module")
    with pytest.raises(BackendError, match="does not load: no module"):
        gpu_decoder(CudaDouble(), 1)
    batch = column([encoded(picture(8, 8))])
    decoder, why = decoder_for(engine_on(CudaDouble()), [bound(batch, 8, 8, 3)], 1)
    assert decoder is None
    assert why.startswith("images are decoded on the CPU: nvImageCodec does not load: no module (hint: pip")


def test_nothing_is_said_where_a_gpu_could_not_help() -> None:
    batch = column([encoded(picture(8, 8))])
    assert decoder_for(engine_on(None), [bound(batch, 8, 8, 3)], 1) == (None, "")
    assert decoder_for(engine_on(CudaDouble()), [bound(batch, 8, 8, 1)], 1) == (None, "")
    assert decoder_for(engine_on(CudaDouble()), None, 1) == (None, "")
