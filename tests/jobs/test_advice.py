"""When converting is advised, and what the advice says; the rates are given, or measured by a given clock."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from trtfleet.datasets.bindings import BindingOptions, ColumnBinding, bind
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.footers import Dataset, inspect, read_schema
from trtfleet.datasets.signature import TensorSpec
from trtfleet.jobs import advice
from trtfleet.jobs.advice import Rates, Sample, advise, measure
from trtfleet.jobs.convert import ConvertSpec, run_convert

BYTES = pa.list_(pa.uint8())
Job = tuple[Dataset, ColumnBinding]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """A dataset of one column ``x`` bound to a uint8 input; every size is large enough for advice."""
    monkeypatch.setattr(advice, "SMALLEST_BYTES", 1)

    def make(column: pa.Array, *shape: int, **options: Any) -> Job:
        path = tmp_path / "data.parquet"
        pq.write_table(pa.table({"x": column}), path, compression="zstd")
        return planned(path, *shape, **options)

    return make


def planned(path: Path, *shape: int, **options: Any) -> Job:
    files = discover([str(path)])
    wanted = TensorSpec(name="image", dtype=np.dtype(np.uint8), row_shape=shape)
    binding = bind(wanted, ["x"], read_schema(files), BindingOptions(**options))
    return inspect(files, ["x"], None), binding


def given(now: float, fast: float) -> Callable[[Sample], Rates]:
    return lambda sample: Rates(now_bytes_per_s=now, fast_bytes_per_s=fast)


def never(sample: Sample) -> Rates:
    raise AssertionError("measured without need")


def jpegs(count: int, height: int, width: int, quality: int = 75) -> pa.Array:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG", quality=quality)
    return pa.array([sink.getvalue()] * count)


def test_a_slow_column_is_named_with_both_rates(job: Callable[..., Job]) -> None:
    dataset, binding = job(pa.array([[1] * 12] * 5, BYTES), 3, 2, 2)
    assert advise(dataset, [binding], given(118e6, 1133e6)) == [
        "column x (list<uint8>) is read at 118 MB/s a core; `trtfleet convert` would make it 9.6 times faster"
    ]


@pytest.mark.parametrize(("fast", "said"), [(1.9, 0), (2.0, 1), (12345, 1)])
def test_only_a_large_gain_is_worth_a_word(job: Callable[..., Job], fast: float, said: int) -> None:
    dataset, binding = job(pa.array([[1] * 12] * 5, BYTES), 3, 2, 2)
    sentences = advise(dataset, [binding], given(1.0, fast))
    assert len(sentences) == said
    assert fast < 10 or "12,345 times faster" in sentences[0]


def test_the_first_rows_are_the_sample(job: Callable[..., Job]) -> None:
    dataset, binding = job(pa.array([[row, 1] for row in range(5)], BYTES), 2)
    seen: list[Sample] = []

    def note(sample: Sample) -> Rates:
        seen.append(sample)
        return Rates(now_bytes_per_s=1, fast_bytes_per_s=1)

    assert advise(dataset, [binding], note) == []
    assert seen[0].batch.column(0).to_pylist() == [[row, 1] for row in range(5)]
    assert (seen[0].codec, str(seen[0].fast)) == ("ZSTD", "uint8[2]")


def test_fast_columns_get_none(job: Callable[..., Job], tmp_path: Path) -> None:
    job(pa.array([[1] * 12] * 5, BYTES), 3, 2, 2)
    run_convert(ConvertSpec(data=(str(tmp_path / "data.parquet"),), out=str(tmp_path / "fast")))
    dataset, binding = planned(tmp_path / "fast", 3, 2, 2)
    assert advise(dataset, [binding], never) == []


def test_small_columns_get_none(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, binding = job(pa.array([[1] * 12] * 5, BYTES), 3, 2, 2)
    monkeypatch.setattr(advice, "SMALLEST_BYTES", 61)
    assert advise(dataset, [binding], never) == []
    monkeypatch.setattr(advice, "SMALLEST_BYTES", 60)
    assert len(advise(dataset, [binding], given(1, 9))) == 1


def test_arrow_files_get_none(job: Callable[..., Job], tmp_path: Path) -> None:
    job(pa.array([[1]], BYTES), 1)
    table = pa.table({"x": pa.array([[1] * 12] * 5, BYTES)})
    path = tmp_path / "data.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    dataset, binding = planned(path, 12)
    assert advise(dataset, [binding], never) == []


def test_resized_images_are_advised_with_the_option_that_does_it(job: Callable[..., Job]) -> None:
    dataset, binding = job(jpegs(4, 32, 32, quality=95), 3, 32, 32, resize=(32, 32))
    (sentence,) = advise(dataset, [binding], given(20e6, 2000e6))
    assert "(encoded images) is read at 20 MB/s a core" in sentence
    assert "`trtfleet convert --resize 32x32` would make it 100 times faster" in sentence
    dataset, binding = job(jpegs(4, 32, 32, quality=95), 1, 32, 32, resize=(32, 32))
    assert "--resize 32x32 --channels 1`" in advise(dataset, [binding], given(20e6, 2000e6))[0]


def test_images_that_grow_say_by_how_much(job: Callable[..., Job]) -> None:
    dataset, binding = job(jpegs(4, 32, 32, quality=90), 3, 40, 40, resize=(40, 40))
    size = len(jpegs(1, 32, 32, quality=90)[0].as_py())
    (sentence,) = advise(dataset, [binding], given(1, 9))
    assert sentence.endswith(f"times faster, and {4800 / (size + 4):.1f} times as large")


def test_images_that_are_not_resized_or_grow_too_much_get_none(job: Callable[..., Job]) -> None:
    dataset, binding = job(jpegs(4, 32, 32), 3, 32, 32)
    assert advise(dataset, [binding], never) == []
    dataset, binding = job(jpegs(4, 32, 32), 3, 320, 320, resize=(320, 320))
    assert advise(dataset, [binding], never) == []


def test_rows_that_do_not_fit_give_no_advice(job: Callable[..., Job], tmp_path: Path) -> None:
    dataset, binding = job(pa.array([[1] * 12, [1]], BYTES), 12)
    assert advise(dataset, [binding]) == []
    dataset, binding = job(pa.array([None, [1] * 12], BYTES), 12)
    assert advise(dataset, [binding], never) == []
    (tmp_path / "data.parquet").unlink()
    assert advise(dataset, [binding], never) == []


def test_patience_ends(job: Callable[..., Job]) -> None:
    dataset, binding = job(pa.array([[1] * 12] * 5, BYTES), 12)
    ticks = itertools.count(step=0.2)
    sentences = advise(dataset, [binding] * 9, given(1, 9), lambda: next(ticks))
    assert len(sentences) == 1


COLUMNS = [
    (pa.array([[1] * 12] * 5, BYTES), {}),
    (jpegs(5, 2, 2), {"resize": (2, 2)}),
]


@pytest.mark.parametrize(("column", "options"), COLUMNS)
def test_rates_are_bytes_of_the_fast_layout_by_the_clock(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, column: Any, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(advice, "_REPEATED_BYTES", 600)
    dataset, binding = job(column, 3, 2, 2, **options)
    seen: list[Sample] = []
    advise(
        dataset, [binding], lambda sample: seen.append(sample) or Rates(now_bytes_per_s=1, fast_bytes_per_s=1)
    )
    # One second from each look at the clock to the next, so that the first batch uses all patience.
    ticks = itertools.count()
    rates = measure(seen[0], lambda: float(next(ticks)))
    rows = 1 if options else 5
    assert rates.now_bytes_per_s == rows * 12 / 2
    assert rates.fast_bytes_per_s == 600


def test_measuring_is_real(job: Callable[..., Job]) -> None:
    dataset, binding = job(pa.array(np.zeros((64, 300), np.uint8).tolist(), BYTES), 300)
    seen: list[Rates] = []

    def keep(sample: Sample) -> Rates:
        seen.append(measure(sample))
        return seen[-1]

    advise(dataset, [binding], keep)
    assert seen[0].now_bytes_per_s > 0
    assert seen[0].fast_bytes_per_s > 0
