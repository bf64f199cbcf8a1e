"""Which JPEG images go to a GPU: none that the CPU's decoder could refuse."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.images import decode_images
from trtfleet.datasets.signature import TensorSpec
from trtfleet.tests.trt_actors.runtime.image_doubles import encoded, picture
from trtfleet.trt_actors.runtime.jpeg_header import JpegHeader, PlainJpegs

_PHOTO = encoded(picture(40, 56), quality=80, restart_marker_blocks=4)


def header(data: bytes) -> JpegHeader | None:
    (found,) = PlainJpegs().headers(pa.array([data], pa.binary()), [(0, memoryview(data))])
    return found


def cpu_takes(data: bytes) -> bool:
    batch = pa.record_batch({"image": pa.array([data], pa.binary())})
    spec = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=(8, 8, 3))
    return not decode_images(batch, bind(spec, ["image"], batch.schema, BindingOptions())).bad


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_usual_images_are_plain(subsampling: str, orientation: int) -> None:
    data = encoded(picture(30, 50), subsampling=subsampling, orientation=orientation, icc_profile=b"x" * 40)
    assert header(data) == JpegHeader(height=30, width=50, orientation=orientation)
    assert header(data + b"\0 more") is None
    assert header(encoded(picture(9, 7).convert("L"))) == JpegHeader(height=9, width=7, orientation=1)
    assert header(encoded(picture(9, 7), optimize=True, comment=b"by hand")) is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"no image",
        encoded(picture(9, 7), "PNG"),
        encoded(picture(30, 50), progressive=True),
        encoded(picture(9, 7).convert("CMYK")),
        encoded(picture(9, 7), keep_rgb=True),
        _PHOTO[:-2],
        _PHOTO[: len(_PHOTO) // 2],
        _PHOTO.replace(b"\xff\xdb", b"\xff\xfe", 2),
        _PHOTO.replace(b"\xff\xc4", b"\xff\xfe", 1),
        _PHOTO.replace(b"\xff\xc0\0\x11\x08\0\x28", b"\xff\xc0\0\x11\x08\0\0"),
        _PHOTO.replace(b"\xff\xc0\0\x11\x08\0\x28\0\x38", b"\xff\xc0\0\x11\x08\xff\xff\xff\xff"),
        _PHOTO.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        _PHOTO.replace(b"\xff\xc0", b"\xff\xc9"),
    ],
    ids=range(15),
)
def test_others_are_left_to_the_cpu(data: bytes) -> None:
    assert header(data) is None


def test_a_marker_in_the_scan_is_out_of_the_ordinary() -> None:
    scan = _PHOTO.index(b"\xff\xda")
    assert header(_PHOTO) is not None
    assert header(_PHOTO[: scan + 40] + b"\xff\xc4" + _PHOTO[scan + 42 :]) is None


@settings(max_examples=400, deadline=None)
@given(
    damage=st.lists(
        st.tuples(st.integers(0, len(_PHOTO) - 1), st.sampled_from([0, 1, 3, 0x11, 0x7F, 0xC4, 0xD9, 0xFF])),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 40),
)
@example(damage=[(len(_PHOTO) - 2, 0)], cut=0)
def test_whatever_is_plain_is_decoded_by_the_cpu_too(damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(_PHOTO)
    for place, value in damage:
        data[place] = value
    whole = bytes(data[: len(data) - cut]) if cut % 2 else bytes(data)
    found = header(whole)
    if found is not None:
        assert cpu_takes(whole)
        with Image.open(io.BytesIO(whole)) as image:
            assert (image.height, image.width) == (found.height, found.width)
