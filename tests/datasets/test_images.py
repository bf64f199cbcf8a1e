"""Encoded images: formats, modes, sizes, orientation, hostile bytes, threads."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from trtfleet.datasets import images
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.decode import decode
from trtfleet.datasets.elements import Decoded
from trtfleet.datasets.jpeg import decode_jpeg
from trtfleet.datasets.orientation import orientation
from trtfleet.datasets.signature import Dim, TensorSpec


def encode(pixels: np.ndarray | Image.Image, form: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return pixels[:, :, 0] if channels == 1 else pixels


def decoded(
    rows: Any, *shape: Dim, dtype: Any = np.uint8, executor: ThreadPoolExecutor | None = None, **options: Any
) -> Decoded:
    batch = pa.record_batch({"image": rows if isinstance(rows, pa.Array) else pa.array(rows, pa.binary())})
    spec = TensorSpec(name="x", dtype=np.dtype(dtype), row_shape=shape)
    result = decode(batch, bind(spec, ["image"], batch.schema, BindingOptions(**options)), executor)
    assert result.values.dtype == dtype
    assert len(result.values) == len(batch)
    return result


def reasons(result: Decoded) -> dict[int, str]:
    assert all(row.column == "image" for row in result.bad)
    return {row.row: row.reason for row in result.bad}


@pytest.mark.parametrize(("form", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_their_pixels(form: str, options: dict[str, Any]) -> None:
    pixels = [noise(5, 7, seed=seed) for seed in range(4)]
    rows = pa.array([encode(each, form, **options) for each in pixels], pa.binary())
    result = decoded(rows.slice(1), 3, 5, 7)
    np.testing.assert_array_equal(result.values, np.stack(pixels[1:]).transpose(0, 3, 1, 2))
    last = decoded(rows, 5, 7, 3, dtype=np.float32)
    np.testing.assert_array_equal(last.values, np.stack(pixels).astype(np.float32))
    assert result.bad == last.bad == ()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("turn", [1, 6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 30, "subsampling": 0},
        {"progressive": True, "subsampling": 1},
        {"restart_marker_rows": 1},
    ],
)
def test_jpeg_gives_what_pillow_gives(mode: str, turn: int, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encode(Image.fromarray(noise(50, 37)).convert(mode), "JPEG", exif=exif, **options)
    assert decode_jpeg(memoryview(data), 10_000) is not None
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    result = decoded([data, data], "H", "W", 3)
    np.testing.assert_array_equal(result.values, np.stack([np.asarray(whole)] * 2))
    small = np.asarray(whole.resize((8, 6), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decoded([data], 3, 6, 8).values[0], small.transpose(2, 0, 1))


def test_a_usual_jpeg_does_not_need_pillow_s_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("not by Pillow")

    monkeypatch.setattr(images._Jpeg, "load", refuse)
    assert decoded([encode(noise(50, 37), "JPEG")], 50, 37, 3).bad == ()


def test_unusual_jpegs_are_left_to_pillow() -> None:
    data = encode(noise(50, 37), "JPEG")
    cmyk = encode(Image.fromarray(noise(50, 37)).convert("CMYK"), "JPEG")
    for left in (cmyk, data[:-200], data[:3], b"", data[:40] + b"\xff" * 100):
        assert decode_jpeg(memoryview(left), 10_000) is None
    assert decode_jpeg(memoryview(data), 50 * 37 - 1) is None


def test_modes_follow_the_channels_of_the_input() -> None:
    grey, colour, alpha = (noise(6, 8, channels) for channels in (1, 3, 4))
    np.testing.assert_array_equal(decoded([encode(grey)], 1, 6, 8).values[0, 0], grey)
    np.testing.assert_array_equal(decoded([encode(grey)], 6, 8, 3).values[0], np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(decoded([encode(alpha)], 6, 8, 3).values[0], alpha[:, :, :3])
    np.testing.assert_array_equal(decoded([encode(alpha)], 6, 8, 4, layout="nhwc").values[0], alpha)
    opaque = np.concatenate([colour, np.full((6, 8, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(decoded([encode(colour)], 6, 8, 4, layout="nhwc").values[0], opaque)
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    np.testing.assert_array_equal(decoded([encode(colour)], 6, 8, 1).values[0, :, :, 0], luma)


def test_palettes_sixteen_bits_and_cmyk() -> None:
    palette = Image.fromarray(noise(6, 8)).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decoded([encode(palette)], 6, 8, 3).values[0], expected)
    see_through = encode(palette, transparency=bytes([0, 128, 255]))
    np.testing.assert_array_equal(decoded([see_through], 6, 8, 3).values[0], expected)
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
    np.testing.assert_array_equal(decoded([encode(deep)], 1, 6, 8).values[0, 0], deep >> 8)
    cmyk = encode(Image.fromarray(noise(6, 8)).convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB"))
    np.testing.assert_array_equal(decoded([cmyk], 6, 8, 3).values[0], expected)


def test_sizes_come_from_the_input_or_the_user() -> None:
    pixels = noise(20, 30)
    small = np.asarray(Image.fromarray(pixels).resize((12, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decoded([encode(pixels)], 8, 12, 3).values[0], small)
    resized = decoded([encode(pixels), encode(noise(3, 4))], 3, "H", "W", resize=(8, 12))
    np.testing.assert_array_equal(resized.values[0], small.transpose(2, 0, 1))
    assert resized.values.shape == (2, 3, 8, 12)


def test_free_sizes_follow_the_first_good_image() -> None:
    rows = [b"junk", encode(noise(6, 8)), encode(noise(5, 6)), None, encode(noise(6, 8, seed=9))]
    result = decoded(rows, 3, "H", "W")
    assert result.values.shape == (5, 3, 6, 8)
    np.testing.assert_array_equal(result.values[4], noise(6, 8, seed=9).transpose(2, 0, 1))
    assert reasons(result) == {
        0: "not a JPEG, PNG, WEBP or BMP image: it starts with 6a 75 6e 6b",
        2: "expected 6x8 pixels, got 5x6",
        3: "null",
    }
    half_fixed = decoded([encode(noise(5, 6)), encode(noise(6, 8))], 3, 6, "W")
    assert reasons(half_fixed) == {0: "expected 6xW pixels, got 5x6"}
    square = decoded([encode(noise(5, 6)), encode(noise(4, 4))], 3, "S", "S")
    assert reasons(square) == {0: "expected SxS pixels, got 5x6"}


def test_nulls_are_filled_with_one_value() -> None:
    result = decoded([None, encode(noise(6, 8))], 3, "H", "W", fill_null=7)
    assert (result.values[0] == 7).all()
    assert result.bad == ()
    assert reasons(decoded([None], 3, "H", "W", fill_null=7)) == {
        0: "null, and no row of the batch tells its size"
    }
    assert decoded([None], 3, 2, 2, fill_null=7).values.tolist() == np.full((1, 3, 2, 2), 7).tolist()


def test_huggingface_structs_and_dictionaries() -> None:
    pixels = noise(6, 8)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": encode(pixels), "path": "a.png"}, None], kind)
    result = decoded(rows, 6, 8, 3)
    np.testing.assert_array_equal(result.values[0], pixels)
    assert reasons(result) == {1: "null"}
    encoded = pa.array([encode(pixels)] * 3, pa.large_binary()).dictionary_encode()
    np.testing.assert_array_equal(decoded(encoded, 6, 8, 3).values, np.stack([pixels] * 3))


def test_no_rows() -> None:
    assert decoded([], 3, "H", "W").bad == ()
    assert decoded([], 6, 8, 3).values.shape == (0, 6, 8, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(form: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera's name"
    exif[0x0112] = turn
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encode(noise(5, 7), form, exif=exif, **lossless)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decoded([data], "H", "W", 3).values[0], expected)


@given(
    st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"Exif\0\0II*\0"])
)
def test_corrupt_exif_is_upright_or_sane(junk: bytes, head: bytes) -> None:
    assert 1 <= orientation(head + junk) <= 8


def test_corrupt_exif_raises_no_warning() -> None:
    pixels = noise(5, 7)
    # One entry promised, its value lying behind the end.
    corrupt = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 9, 0x011A, 5, 1, 4000)
    data = encode(pixels, "JPEG", exif=corrupt)
    expected = np.asarray(Image.open(io.BytesIO(encode(pixels, "JPEG"))))
    np.testing.assert_array_equal(decoded([data], "H", "W", 3).values[0], expected)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + end


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    good = encode(noise(6, 8))
    rows = [png_header(8193, 8192), png_header(30_000, 30_000), good, png_header(8192, 8192)]
    result = decoded(rows, 6, 8, 3)
    found = reasons(result)
    assert found[0] == f"8193x8192 pixels exceed the limit of {images.MAX_PIXELS}"
    assert found[1] == f"30000x30000 pixels exceed the limit of {images.MAX_PIXELS}"
    assert found[3].startswith("cannot be decoded: ")
    np.testing.assert_array_equal(result.values[2], noise(6, 8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_truncated_images_are_bad_rows(form: str) -> None:
    data = encode(noise(40, 40), form)
    result = decoded([data[: len(data) // 2], data[:16], data, b""], 40, 40, 3)
    found = reasons(result)
    assert sorted(found) == [0, 1, 3]
    assert found[0].startswith("cannot be decoded: ")
    assert found[1].startswith("cannot be decoded: ")
    assert found[3] == "not a JPEG, PNG, WEBP or BMP image: it starts with nothing"


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
    st.lists(st.tuples(st.integers(12, 400), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_never_escape(form: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(encode(noise(9, 9), form))
    for place, value in damage:
        data[place % len(data)] = value
    result = decoded([bytes(data)], 9, 9, 3)
    assert result.values.shape == (1, 9, 9, 3)
    assert all("\n" not in row.reason for row in result.bad)


def test_other_formats_are_refused() -> None:
    found = reasons(decoded([encode(noise(4, 4), "GIF"), encode(noise(4, 4), "TIFF")], 4, 4, 3))
    assert all(reason.startswith("not a JPEG, PNG, WEBP or BMP image") for reason in found.values())
    assert sorted(found) == [0, 1]


def test_threads_give_the_same_answer() -> None:
    rows = [encode(noise(16, 16, seed=seed), "JPEG") for seed in range(24)]
    rows[5], rows[9] = b"junk", encode(noise(8, 8))
    alone = decoded(rows, 3, "H", "W", dtype=np.float16)
    with ThreadPoolExecutor(4) as executor:
        together = decoded(rows, 3, "H", "W", dtype=np.float16, executor=executor)
    np.testing.assert_array_equal(alone.values, together.values)
    assert alone.bad == together.bad
    assert sorted(reasons(alone)) == [5, 9]
