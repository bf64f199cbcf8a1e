"""Which rows are sampled, how units are cut, and that batches hold the same rows however they are cut."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.discovery import Format, SourceFile, discover
from trtfleet.datasets.footers import Dataset, inspect
from trtfleet.datasets.reading import Projection
from trtfleet.datasets.sample_reading import read_batches
from trtfleet.datasets.sampling import Unit, plan_units, sample_rows, suggest_unit_batches
from trtfleet.datasets.shards import Group
from trtfleet.errors import DatasetError, UsageError

COLUMNS = ("id", "image")
FILES = (("a.parquet", 103, 20), ("b.arrow", 40, 15), ("c.parquet", 1, 1), ("d.arrows", 57, 25))


def write(path: Path, first: int, rows: int, group_rows: int) -> None:
    ids = np.arange(first, first + rows)
    images = np.repeat(ids, 4).astype(np.uint8).reshape(-1, 2, 2)
    table = pa.table({"id": ids, "image": pa.FixedShapeTensorArray.from_numpy_ndarray(images)})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group_rows)
        return
    with (pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream)(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=group_rows)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """201 rows in four files of three formats, numbered in dataset order."""
    first = 0
    for name, rows, group_rows in FILES:
        write(tmp_path / name, first, rows, group_rows)
        first += rows
    return inspect(discover([str(tmp_path)]), COLUMNS, None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def batches(
    units: list[Unit], dataset: Dataset, pool: ThreadPoolExecutor
) -> list[list[tuple[list[int], list[int]]]]:
    """Ids and positions of every block of every batch."""
    projection = Projection(columns=COLUMNS, partitions=dataset.partitions)
    return [
        [(block.batch["id"].to_pylist(), block.rows.tolist()) for block in batch]
        for unit in units
        for batch in read_batches(unit, projection, pool, 1 << 20)
    ]


def file_of(rows: int, groups: int) -> tuple[SourceFile, tuple[Group, ...]]:
    file = SourceFile(root="/r", path=f"{rows}-{groups}", size_bytes=rows, version="1", format=Format.PARQUET)
    edges = np.linspace(0, rows, groups + 1).astype(int)
    return file, tuple(Group(rows=int(size), size_bytes=int(size) * 8) for size in np.diff(edges))


class TestRows:
    def test_are_distinct_sorted_and_the_same_for_the_same_seed(self) -> None:
        rows = sample_rows(10_000, 500, seed=3)
        assert len(np.unique(rows)) == 500
        assert (np.diff(rows) > 0).all()
        np.testing.assert_array_equal(rows, sample_rows(10_000, 500, seed=3))
        assert not np.array_equal(rows, sample_rows(10_000, 500, seed=4))

    def test_come_from_the_whole_dataset(self) -> None:
        counts = np.zeros(10, np.int64)
        for seed in range(100):
            counts += np.bincount(sample_rows(1_000_000, 100, seed) // 100_000, minlength=10)
        # A tenth of 10,000 draws each; five standard deviations are 150.
        assert (abs(counts - 1000) < 150).all()

    @pytest.mark.parametrize("samples", [7, 8])
    def test_are_all_where_there_are_no_more(self, samples: int) -> None:
        np.testing.assert_array_equal(sample_rows(7, samples, seed=0), np.arange(7))

    @pytest.mark.parametrize(("samples", "seed"), [(0, 0), (5, -1)])
    def test_refuse_senseless_numbers(self, samples: int, seed: int) -> None:
        with pytest.raises(UsageError, match="must be >="):
            sample_rows(10, samples, seed)


class TestUnits:
    @given(
        files=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5)), min_size=1, max_size=6),
        samples=st.integers(1, 200),
        batch_size=st.integers(1, 9),
        unit_batches=st.integers(1, 5),
    )
    def test_hold_every_sampled_row_once_and_in_order(
        self, files: list[tuple[int, int]], samples: int, batch_size: int, unit_batches: int
    ) -> None:
        planned = [file_of(*shape) for shape in files]
        total = sum(rows for rows, _ in files)
        rows = sample_rows(total, samples, seed=1)
        units = plan_units(planned, rows, batch_size=batch_size, unit_batches=unit_batches)
        starts = np.concatenate([[0], np.cumsum([rows for rows, _ in files])])
        found = np.concatenate([starts[s.shard.index] + s.rows for unit in units for s in unit.files])
        np.testing.assert_array_equal(found, rows)
        assert all(unit.rows == batch_size * unit_batches for unit in units[:-1])
        assert [unit.first for unit in units] == list(range(0, len(rows), batch_size * unit_batches))
        for unit in units:
            for sampled in unit.files:
                spans = [range(s.first_row, s.first_row + s.rows) for s in sampled.shard.segments]
                assert all(any(row in span for span in spans) for row in sampled.rows.tolist())
                assert sum(map(len, spans)) <= sampled.rows[-1] - sampled.rows[0] + 1

    def test_have_ids_that_tell_their_content(self) -> None:
        files = [file_of(50, 2), file_of(30, 1)]
        rows = sample_rows(80, 40, seed=0)
        ids = [unit.id for unit in plan_units(files, rows, batch_size=4, unit_batches=2)]
        assert len(set(ids)) == 5
        assert ids == [unit.id for unit in plan_units(files, rows, batch_size=4, unit_batches=2)]
        others = plan_units(files, sample_rows(80, 40, seed=1), batch_size=4, unit_batches=2)
        assert not {unit.id for unit in others} & set(ids)
        assert not {unit.id for unit in plan_units(files, rows, batch_size=8, unit_batches=1)} & set(ids)

    def test_locate_their_rows(self) -> None:
        files = [file_of(50, 2), file_of(30, 1)]
        rows = sample_rows(80, 40, seed=0)
        for unit in plan_units(files, rows, batch_size=4, unit_batches=3):
            for position in range(unit.first, unit.first + unit.rows):
                row = int(rows[position])
                expected = ("/r/50-2", row) if row < 50 else ("/r/30-1", row - 50)
                assert unit.locate(position) == expected
            with pytest.raises(IndexError):
                unit.locate(unit.first + unit.rows)

    def test_are_several_for_each_actor_but_never_less_than_a_batch(self) -> None:
        assert suggest_unit_batches(500, 32, actors=1) == 4
        assert suggest_unit_batches(500, 32, actors=2) == 2
        assert suggest_unit_batches(500, 32, actors=100) == 1
        assert suggest_unit_batches(1, 32, actors=1) == 1

    @pytest.mark.parametrize(("batch_size", "unit_batches"), [(0, 1), (1, 0)])
    def test_refuse_sizes_below_one(self, batch_size: int, unit_batches: int) -> None:
        with pytest.raises(UsageError, match="must be >= 1, got 0"):
            plan_units([file_of(5, 1)], np.arange(5), batch_size=batch_size, unit_batches=unit_batches)


class TestBatches:
    @pytest.mark.parametrize("samples", [3, 60, 201])
    def test_hold_the_rows_of_the_sample(
        self, dataset: Dataset, pool: ThreadPoolExecutor, samples: int
    ) -> None:
        rows = sample_rows(201, samples, seed=5)
        units = plan_units(dataset.files, rows, batch_size=8, unit_batches=3)
        found = batches(units, dataset, pool)
        flat = [[i for ids, _ in batch for i in ids] for batch in found]
        assert flat == [rows[start : start + 8].tolist() for start in range(0, samples, 8)]
        assert [i for batch in found for _, at in batch for i in at] == list(range(samples))

    def test_are_cut_alike_whatever_the_units_are(self, dataset: Dataset, pool: ThreadPoolExecutor) -> None:
        rows = sample_rows(201, 90, seed=2)

        def cut(unit_batches: int) -> list[list[tuple[list[int], list[int]]]]:
            units = plan_units(dataset.files, rows, batch_size=7, unit_batches=unit_batches)
            return batches(units, dataset, pool)

        assert cut(1) == cut(2) == cut(5) == cut(100)
        assert any(len(batch) > 1 for batch in cut(1)), "no batch crosses a file"

    def test_keep_tensors(self, dataset: Dataset, pool: ThreadPoolExecutor) -> None:
        (unit,) = plan_units(dataset.files, np.array([4, 90, 102]), batch_size=3, unit_batches=1)
        projection = Projection(columns=COLUMNS, partitions=dataset.partitions)
        ((block,),) = read_batches(unit, projection, pool, 1 << 20)
        assert isinstance(block.batch.schema.field("image").type, pa.FixedShapeTensorType)
        assert block.batch["image"].to_numpy_ndarray()[:, 1, 1].tolist() == [4, 90, 102]

    def test_a_file_that_changed_is_refused(
        self, tmp_path: Path, dataset: Dataset, pool: ThreadPoolExecutor
    ) -> None:
        units = plan_units(dataset.files, np.arange(201), batch_size=50, unit_batches=5)
        write(tmp_path / "a.parquet", 0, 90, 20)
        with pytest.raises(DatasetError, match=r"a\.parquet changed under the job"):
            batches(units, dataset, pool)
