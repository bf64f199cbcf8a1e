"""What the resizing kernels are told, and whether they are those of their source."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trtfleet.trt_actors.runtime import resize
from trtfleet.trt_actors.runtime.resize import Frame, ImageLayout

_FOLDER = Path(resize.__file__).parent


def test_the_kernels_are_compiled_from_their_source() -> None:
    source = hashlib.sha256((_FOLDER / "resize.cu").read_bytes()).hexdigest()
    assert source in (_FOLDER / "resize.ptx").read_text()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_steps_are_those_of_the_array_in_memory(axes: tuple[int, ...]) -> None:
    layout = ImageLayout(height=5, width=7, axes=axes)
    array = np.zeros(layout.shape, np.uint8)
    strides = np.transpose(array, np.argsort(axes)).strides
    assert layout.steps == strides


def test_rooms_do_not_overlap_and_are_large_enough() -> None:
    sizes = [(375, 500), (1, 1), (600, 20), (20, 600), (224, 224)]
    frames = [Frame(pointer=64, row_bytes=3 * wide, height=high, width=wide) for high, wide in sizes]
    layout = ImageLayout(height=50, width=40, axes=(0, 1, 2))
    orientations = [1, 3, 6, 8, 5]
    table, made_bytes, strip_bytes, most_rows = resize._table(frames, orientations, range(5), layout)
    upright = [size if turn < 5 else size[::-1] for size, turn in zip(sizes, orientations, strict=True)]
    rooms = []
    for row, (high, wide) in zip(table.tolist(), upright, strict=True):
        for begin, taps, count, source in ((row[6], row[7], 40, wide), (row[8], row[9], 50, high)):
            rooms.append((begin, begin + count * (taps + 2)))
            assert taps >= _most_pixels(source, count)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(rooms))
    assert rooms[-1][1] * 4 == made_bytes
    assert table[:, 5].tolist() == np.cumsum([0, *(120 * high for high, _ in upright)])[:-1].tolist()
    assert strip_bytes == 120 * sum(high for high, _ in upright)
    assert most_rows == max(high for high, _ in upright)


def _most_pixels(source: int, target: int) -> int:
    """The most pixels of a line that Pillow makes one pixel of, seen by what a single bright one reaches."""
    reached = np.zeros(target, int)
    for bright in range(source):
        line = np.zeros((1, source), np.float32)
        line[0, bright] = 1
        made = np.asarray(Image.fromarray(line).resize((target, 1), Image.Resampling.BILINEAR))
        reached += made[0] != 0
    return int(reached.max())
