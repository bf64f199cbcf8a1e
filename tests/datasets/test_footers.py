"""What footers say: schema, row groups, their sizes, what a filter excludes, files that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.filters import Filter
from trtfleet.datasets.footers import Dataset, inspect, partition_values, read_schema
from trtfleet.errors import DatasetError, EmptyDatasetError, MismatchError

FLOATS = st.sampled_from([0.0, 1.0, 2.0, float("nan"), None])
WHERE = [
    "x == 1",
    "x != 1",
    "not x == 1",
    "not x < 1",
    "x <= 1",
    "not (x >= 0 and x <= 2)",
    "not (x > 1 or x < 1)",
    "x in (1.0,)",
    "x not in (1.0,)",
    "x is None",
    "not x is None",
]


def write(path: Path, table: pa.Table, rows: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows, **options)
        return path
    maker = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with maker(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def look(path: Path, columns: list[str], where: str | None = None) -> Dataset:
    return inspect(discover([str(path)]), columns, Filter(where) if where else None)


def kept(dataset: Dataset) -> list[list[bool]]:
    return [[group.keep for group in groups] for _, groups in dataset.files]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
def test_schema_and_rows(tmp_path: Path, suffix: str) -> None:
    table = pa.table({"a": np.arange(10), "b": [[1.0]] * 10, "c": ["x"] * 10})
    write(tmp_path / "k=1" / f"a{suffix}", table, 4)
    write(tmp_path / "k=2" / f"a{suffix}", table.slice(0, 0), 4)
    write(tmp_path / "k=3" / f"a{suffix}", table.slice(0, 5), 4)
    files = discover([str(tmp_path)])
    assert read_schema(files) == table.schema.append(pa.field("k", pa.int64()))
    dataset = look(tmp_path, ["k", "b"])
    assert dataset.schema == pa.schema([("k", pa.int64()), table.schema.field("b")])
    assert dataset.partitions == pa.schema([("k", pa.int64())])
    assert [[group.rows for group in groups if group.rows] for _, groups in dataset.files] == [
        [4, 4, 2],
        [],
        [4, 1],
    ]
    assert dataset.rows == 15
    assert [file.path for file, _ in dataset.files] == [f"k={k}/a{suffix}" for k in (1, 2, 3)]


class TestSizes:
    def test_only_the_columns_read_count(self, tmp_path: Path) -> None:
        table = pa.table(
            {"wide": np.random.default_rng(0).random(1000), "narrow": np.arange(1000, dtype=np.int8)}
        )
        write(tmp_path / "a.parquet", table, 1000, use_dictionary=False)
        assert 8000 <= look(tmp_path, ["wide"]).size_bytes < 9000
        assert look(tmp_path, ["narrow"]).size_bytes < 5000
        assert look(tmp_path, []).size_bytes == 0

    def test_names_with_dots_and_nesting(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).random(1000)
        nested = pa.StructArray.from_arrays([pa.array(values), pa.array(values)], ["b", "c"])
        table = pa.table({"a.b": values, "a": nested, "ab": values, "l": [[v, v] for v in values]})
        write(tmp_path / "a.parquet", table, 1000, use_dictionary=False)
        sizes = {name: look(tmp_path, [name]).size_bytes // 8000 for name in table.column_names}
        assert sizes["a.b"] in (1, 2)
        assert (sizes["ab"], sizes["l"]) == (1, 2)
        assert sizes["a"] in (2, 3)

    @pytest.mark.parametrize(
        ("kind", "value", "row_bytes"),
        [
            (pa.binary(1000), b"\0" * 1000, 1000),
            (pa.int64(), 7, 8),
            (pa.float32(), 1.0, 4),
            (pa.list_(pa.uint8()), [0] * 500, 500),
            (pa.list_(pa.float32(), 100), [0.0] * 100, 400),
        ],
    )
    @pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
    def test_repeated_values_count_as_they_are_decoded(
        self, tmp_path: Path, suffix: str, kind: pa.DataType, value: Any, row_bytes: int
    ) -> None:
        options = {} if suffix == ".parquet" else {"compression": "zstd"}
        path = write(
            tmp_path / f"a{suffix}", pa.table({"x": pa.array([value] * 2000, kind)}), 1000, **options
        )
        if suffix != ".parquet" and pa.types.is_list(kind):
            return
        assert path.stat().st_size < 2000 * row_bytes
        assert look(tmp_path, ["x"]).size_bytes >= 2000 * row_bytes

    def test_what_is_excluded_does_not_count(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.table({"a": np.arange(100)}), 10)
        whole, part = look(tmp_path, ["a"]), look(tmp_path, ["a"], "a >= 90")
        assert (part.rows, whole.rows) == (10, 100)
        assert part.size_bytes * 9 < whole.size_bytes


class TestPruning:
    def test_by_statistics(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.table({"a": np.arange(40), "s": [f"{i:02}" for i in range(40)]}), 10)
        assert kept(look(tmp_path, ["a"], "a == 15")) == [[False, True, False, False]]
        assert kept(look(tmp_path, ["a"], "a < 10 or s > '35'")) == [[True, False, False, True]]
        assert kept(look(tmp_path, ["a"], "s in ('15', '25')")) == [[False, True, True, False]]
        assert kept(look(tmp_path, ["a"], "a is not None")) == [[True] * 4]

    @pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
    def test_by_partition(self, tmp_path: Path, suffix: str) -> None:
        for value in ("1", "2", "__HIVE_DEFAULT_PARTITION__"):
            write(tmp_path / f"k={value}" / f"a{suffix}", pa.table({"a": [1, 2]}), 1)
        assert kept(look(tmp_path, ["a"], "k == 2")) == [[False] * 2, [True] * 2, [False] * 2]
        assert kept(look(tmp_path, ["a"], "k is None")) == [[False] * 2, [False] * 2, [True] * 2]
        assert kept(look(tmp_path, ["a"], "k != 2")) == [[True] * 2, [False] * 2, [False] * 2]
        with pytest.raises(EmptyDatasetError, match="k == 9"):
            look(tmp_path, ["a"], "k == 9")

    def test_partition_and_statistics_together(self, tmp_path: Path) -> None:
        for value in ("1", "2"):
            write(tmp_path / f"k={value}" / "a.parquet", pa.table({"a": [1, 2]}), 1)
        assert kept(look(tmp_path, ["a"], "k == 2 and a == 1")) == [[False] * 2, [True, False]]
        assert kept(look(tmp_path, ["a"], "k == 2 or a == 1")) == [[True, False], [True] * 2]

    @given(st.lists(st.lists(FLOATS, min_size=1, max_size=3), min_size=1, max_size=4), st.sampled_from(WHERE))
    @settings(max_examples=100, deadline=None)
    def test_no_row_that_passes_is_lost(
        self, tmp_path_factory: pytest.TempPathFactory, groups: list[list[float | None]], where: str
    ) -> None:
        """NaN is in no statistics."""
        path = tmp_path_factory.mktemp("pruning") / "a.parquet"
        schema = pa.schema({"x": pa.float64()})
        with pq.ParquetWriter(path, schema) as writer:
            for group in groups:
                writer.write_table(pa.table({"x": group}, schema=schema))
        expression = Filter(where).expression
        passing = [bool(pa.table({"x": g}, schema=schema).filter(expression).num_rows) for g in groups]
        try:
            (found,) = kept(look(path, ["x"], where))
        except EmptyDatasetError:
            found = [False] * len(groups)
        assert all(keep for keep, passes in zip(found, passing, strict=True) if passes)


class TestRefusals:
    def test_a_file_lacks_a_column(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.table({"a": [1], "b": [1]}), 1)
        write(tmp_path / "b.parquet", pa.table({"c": [1], "b": [1]}), 1)
        assert look(tmp_path, ["b"]).rows == 2
        with pytest.raises(MismatchError, match=r"b\.parquet lacks column 'a'") as raised:
            look(tmp_path, ["a"])
        assert raised.value.hint == "its columns: c, b"
        with pytest.raises(MismatchError, match=r"a\.parquet lacks column 'c'"):
            look(tmp_path, ["c"])

    @pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
    def test_types_differ(self, tmp_path: Path, suffix: str) -> None:
        write(tmp_path / f"a{suffix}", pa.table({"a": [1]}), 1)
        write(tmp_path / f"b{suffix}", pa.table({"a": [1.0]}), 1)
        with pytest.raises(
            MismatchError, match=rf"b{suffix} holds column 'a' as double, other files as int64"
        ):
            look(tmp_path, ["a"])

    def test_files_of_several_formats_are_one_dataset(self, tmp_path: Path) -> None:
        for suffix in (".parquet", ".arrow", ".arrows"):
            write(tmp_path / f"a{suffix}", pa.table({"a": [1, 2]}), 1)
        assert look(tmp_path, ["a"]).rows == 6

    def test_a_partition_with_a_columns_name(self, tmp_path: Path) -> None:
        write(tmp_path / "a=1" / "a.parquet", pa.table({"a": [1]}), 1)
        with pytest.raises(DatasetError, match=r"'a' is a column of .* and a Hive partition"):
            look(tmp_path, ["a"])

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"]), 1)
        with pytest.raises(DatasetError, match="more than one column 'x'"):
            look(tmp_path, ["x"])

    @pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".arrows"])
    @pytest.mark.parametrize("number", [0, 1])
    def test_a_truncated_file(self, tmp_path: Path, suffix: str, number: int) -> None:
        paths = [write(tmp_path / f"{n}{suffix}", pa.table({"a": np.arange(9999)}), 5000) for n in range(3)]
        content = paths[number].read_bytes()
        paths[number].write_bytes(content[: len(content) // 2])
        with pytest.raises(DatasetError, match=rf"cannot read .*{number}{suffix}: .") as raised:
            look(tmp_path, ["a"])
        assert raised.value.hint == "is the file complete?"

    def test_no_rows(self, tmp_path: Path) -> None:
        for name in ("a.parquet", "b.arrow", "c.arrows"):
            write(tmp_path / name, pa.table({"a": pa.array([], pa.int64())}), 1)
        with pytest.raises(EmptyDatasetError, match=r"no rows \(3 files read\)"):
            look(tmp_path, ["a"])

    def test_nothing_passes(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.table({"a": [1]}), 1)
        with pytest.raises(EmptyDatasetError, match="--filter 'a == 2' matches no row"):
            look(tmp_path, ["a"], "a == 2")

    def test_a_filter_that_does_not_fit(self, tmp_path: Path) -> None:
        write(tmp_path / "a.parquet", pa.table({"a": [1]}), 1)
        with pytest.raises(MismatchError, match="names column 'b'"):
            look(tmp_path, ["a"], "b == 2")


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_footers_are_read_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("trtfleet.datasets.footers._READ_AT_ONCE", 2)
    for number in range(count):
        write(tmp_path / f"{number}.parquet", pa.table({"a": np.arange(number + 1)}), 4)
    files = look(tmp_path, ["a"]).files
    assert [file.path for file, _ in files] == [f"{number}.parquet" for number in range(count)]
    assert [sum(group.rows for group in groups) for _, groups in files] == list(range(1, count + 1))


def test_a_row_group_of_bytes_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", pa.table({"a": np.arange(100)}), 50)
    monkeypatch.setattr("trtfleet.datasets.footers.MAX_GROUP_BYTES", 399)
    with pytest.raises(DatasetError, match=r"row group 0 has 50 rows of 5\d\d bytes, .* and 399 bytes"):
        look(tmp_path, ["a"])


def test_partition_values(tmp_path: Path) -> None:
    for folder in ("n=1/s=x", "n=__HIVE_DEFAULT_PARTITION__/s=2", "other"):
        write(tmp_path / folder / "a.parquet", pa.table({"a": [1]}), 1)
    files = discover([str(tmp_path)])
    partitions = inspect(files, ["a"], None).partitions
    values = [{k: v.as_py() for k, v in partition_values(file, partitions).items()} for file in files]
    assert values == [{"n": 1, "s": "x"}, {"n": None, "s": "2"}, {"n": None, "s": None}]


def test_on_s3(bucket: str, tmp_path: Path) -> None:
    from trtfleet.datasets.storage import Storage

    storage = Storage(f"{bucket}/a b/ä")
    for suffix in (".parquet", ".arrow", ".arrows"):
        path = write(tmp_path / f"a{suffix}", pa.table({"a": np.arange(10)}), 4)
        storage.put(f"k=1/a{suffix}", path.read_bytes())
    dataset = inspect(discover([storage.url]), ["a", "k"], Filter("k == 1 and a < 4"))
    assert {file.path[-7:]: [group.keep for group in groups] for file, groups in dataset.files} == {
        "a.arrow": [True] * 3,
        ".arrows": [True] * 3,
        "parquet": [True, False, False],
    }
