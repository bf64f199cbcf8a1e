"""Part files: the same bytes for the same rows, however they arrive, and nothing left of a failed one."""

from __future__ import annotations

import gc
import hashlib
import io
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.datasets import parts
from trtfleet.datasets.parts import COMPRESSIONS, PartWriter, WrittenPart
from trtfleet.datasets.storage import Storage
from trtfleet.errors import HookError, OutputError

ROWS = 150_000
"""More than a row group of narrow rows, 131,072, so that groups and batches do not end together."""


def narrow(rows: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(0)
    words = pa.array(["", "a", "bb", None]).take(pa.array(rng.integers(0, 4, rows)))
    return pa.table({"id": np.arange(rows), "y": rng.random(rows, np.float32), "s": words})


def wide(rows: int) -> pa.Table:
    values = np.arange(rows, dtype=np.uint8).repeat(4096)
    return pa.table({"y": pa.FixedSizeListArray.from_arrays(pa.array(values), 4096)})


def write(
    storage: Storage,
    table: pa.Table,
    cuts: Sequence[int] = (),
    path: str = "p.parquet",
    compression: str = "snappy",
) -> WrittenPart:
    edges = [0, *sorted(cut for cut in cuts if cut < table.num_rows), table.num_rows]
    with PartWriter(storage, path, compression) as writer:
        for start, stop in pairwise(edges):
            for batch in table.slice(start, stop - start).to_batches():
                writer.write(batch)
        part = writer.close()
    assert part is not None
    return part


def groups(storage: Storage, path: str) -> list[int]:
    with storage.open_input(path) as source:
        meta = pq.ParquetFile(source).metadata
    return [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]


class TestBytes:
    def test_what_is_returned_is_what_is_stored(self, place: str) -> None:
        storage = Storage(place)
        part = write(storage, narrow(), [70_000])
        content = storage.get("p.parquet") or b""
        assert part == WrittenPart(
            path="p.parquet",
            rows=ROWS,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        assert pq.read_table(io.BytesIO(content)).equals(narrow())

    @given(st.lists(st.integers(0, ROWS), max_size=6))
    @settings(max_examples=25, deadline=None)
    def test_they_do_not_depend_on_the_batches(
        self, tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
    ) -> None:
        storage = Storage(tmp_path_factory.mktemp("parts"))
        table = narrow()
        assert write(storage, table, cuts).sha256 == write(storage, table).sha256
        assert groups(storage, "p.parquet") == [131_072, ROWS - 131_072]

    def test_nor_on_how_batches_lie_in_memory(self, tmp_path: Path) -> None:
        table = narrow(1000)
        offset = pa.concat_tables([narrow(7), table]).combine_chunks().slice(7)
        reordered = table.take(pa.array(np.arange(1000)))
        digests = {write(Storage(tmp_path), each).sha256 for each in (table, offset, reordered)}
        assert len(digests) == 1

    def test_wide_rows_make_small_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(parts, "_ROW_GROUP_BYTES", 16 * 4096)
        storage = Storage(tmp_path)
        assert write(storage, wide(40), [1, 5, 33]) == write(storage, wide(40))
        assert groups(storage, "p.parquet") == [16, 16, 8]

    def test_a_batch_larger_than_several_groups(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path)
        table = pa.table({"x": np.zeros(300_000, np.int8)})
        write(storage, table)
        assert groups(storage, "p.parquet") == [131_072, 131_072, 300_000 - 262_144]

    @pytest.mark.parametrize("compression", COMPRESSIONS)
    def test_compressions(self, tmp_path: Path, compression: str) -> None:
        storage = Storage(tmp_path)
        write(storage, narrow(1000), compression=compression)
        column = pq.read_metadata(tmp_path / "p.parquet").row_group(0).column(0)
        assert column.compression.lower().replace("uncompressed", "none").startswith(compression)
        assert pq.read_table(tmp_path / "p.parquet").equals(narrow(1000))

    def test_types_come_back(self, tmp_path: Path) -> None:
        values = pa.array(np.arange(12, dtype=np.float32))
        lists = pa.FixedSizeListArray.from_arrays(values, 6)
        tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2, 3)), lists)
        table = pa.table(
            {
                "tensor": tensor,
                "list": lists,
                "struct": pa.array([{"a": 1, "b": None}, None]),
                "dictionary": pa.array(["x", "y"]).dictionary_encode(),
                "binary": pa.array([b"abcd", None], pa.binary(4)),
                "time": pa.array([1, None], pa.timestamp("us", "UTC")),
                "large": pa.array(["a", "b"], pa.large_string()),
                "half": np.array([1, 2], np.float16),
            }
        )
        write(Storage(tmp_path), table)
        assert pq.read_table(tmp_path / "p.parquet").equals(table)

    def test_statistics_only_where_they_are_small_and_of_use(self, tmp_path: Path) -> None:
        table = pa.table({"id": [1, 2], "s": ["a", "b"], "x": pa.array([b"a" * 1000] * 2, pa.binary(1000))})
        write(Storage(tmp_path), table)
        group = pq.read_metadata(tmp_path / "p.parquet").row_group(0)
        assert [group.column(n).is_stats_set for n in range(3)] == [True, True, False]


class TestEnds:
    def test_no_rows_no_object(self, place: str) -> None:
        storage = Storage(place)
        with PartWriter(storage, "p.parquet", "snappy") as writer:
            assert writer.close() is None
            writer.write(pa.RecordBatch.from_pylist([], narrow(1).schema))
            assert writer.close() is None
        assert storage.list() == []

    def test_an_empty_batch_sets_no_schema(self, tmp_path: Path) -> None:
        with PartWriter(Storage(tmp_path), "p.parquet", "snappy") as writer:
            writer.write(pa.RecordBatch.from_pydict({"other": pa.array([], pa.int8())}))
            writer.write(pa.RecordBatch.from_pydict({"x": [1]}))
            part = writer.close()
        assert part is not None
        assert part.rows == writer.rows == 1

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            ({"x": [1.0]}, r"from \[x: int64\] to \[x: double\]"),
            ({"y": [1]}, r"to \[y: int64\]"),
            ({"x": [1], "y": [1]}, r"to \[x: int64, y: int64\]"),
        ],
    )
    def test_a_changed_schema(self, tmp_path: Path, second: dict[str, Any], words: str) -> None:
        storage = Storage(tmp_path)
        writer = PartWriter(storage, "p.parquet", "snappy")
        writer.write(pa.RecordBatch.from_pydict({"x": [1]}))
        with pytest.raises(HookError, match=words), writer:
            writer.write(pa.RecordBatch.from_pydict(second))
        assert storage.list() == []

    @pytest.mark.parametrize("rows", [10, ROWS])
    @pytest.mark.parametrize("how", ["exception", "discard", "close and discard"])
    def test_discarding_leaves_nothing(self, place: str, rows: int, how: str) -> None:
        """Neither an object nor a complaint of the Parquet writer when it is collected."""
        storage = Storage(place)
        writer = PartWriter(storage, "parts/p.parquet", "snappy")
        (batch,) = narrow(rows).combine_chunks().to_batches()
        writer.write(batch)
        if how == "exception":
            with pytest.raises(ZeroDivisionError), writer:
                raise ZeroDivisionError
        else:
            if how == "close and discard":
                assert writer.close() is not None
                assert len(storage.list()) == 1
            writer.discard()
        writer.discard()
        del writer
        gc.collect()
        assert storage.list() == []

    def test_nothing_shows_on_s3_before_close(self, bucket: str) -> None:
        storage = Storage(bucket)
        with PartWriter(storage, "p.parquet", "snappy") as writer:
            (batch,) = narrow().combine_chunks().to_batches()
            writer.write(batch)
            assert storage.list() == []
            assert writer.close() is not None
        assert [entry.path for entry in storage.list()] == ["p.parquet"]

    def test_a_storage_that_fails(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write .*file/p\.parquet") as raised:
            write(Storage(tmp_path / "file"), narrow(10))
        assert raised.value.hint
