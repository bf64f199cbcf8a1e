"""Reading shards: the table again, in order, with its row numbers, and no more of the file than needed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trtfleet.datasets import reading
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.filters import Filter
from trtfleet.datasets.footers import inspect
from trtfleet.datasets.reading import Block, Projection, ShardReader
from trtfleet.datasets.shards import Shard, plan_shards
from trtfleet.datasets.storage import Storage
from trtfleet.errors import DatasetError, EmptyDatasetError

FORMATS = [".parquet", ".arrow", ".arrows"]


def write(path: Path, table: pa.Table, rows: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows, **options)
        return path
    maker = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with maker(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def plan(
    location: Path | str, columns: Sequence[str], where: str | None = None, shard_bytes: int = 1 << 20
) -> tuple[list[Shard], Projection]:
    condition = Filter(where) if where else None
    needed = dict.fromkeys([*columns, *sorted(condition.columns if condition else ())])
    dataset = inspect(discover([str(location)]), list(needed), condition)
    projection = Projection(columns=tuple(columns), partitions=dataset.partitions, where=condition)
    return plan_shards(dataset.files, shard_bytes), projection


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4, "test") as pool:
        yield pool


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts shards into many tasks without needing many bytes."""
    monkeypatch.setattr(reading, "_TASK_BYTES", 100)


def joined(blocks: Sequence[Block]) -> pa.Table:
    return pa.Table.from_batches([block.batch for block in blocks])


# --- against the table ---

VALUES = {
    "a": st.integers(-5, 5),
    "b": st.one_of(st.none(), st.floats(-2, 2, width=32)),
    "c": st.one_of(st.none(), st.sampled_from(["", "x", "long " * 5])),
    "d": st.lists(st.integers(0, 3), max_size=3),
}
SCHEMA = pa.schema({"a": pa.int64(), "b": pa.float64(), "c": pa.string(), "d": pa.list_(pa.int16())})
FILTERS = [
    None,
    "a > 0",
    "a != 2 and b is not None",
    "k == 2",
    "k is None or a == 1",
    "c == 'x' or s == 'ä b'",
]
FOLDERS = ["k=1/s=x", "k=2/s=%C3%A4 b", "k=__HIVE_DEFAULT_PARTITION__/s=x"]


@given(
    files=st.lists(st.lists(st.fixed_dictionaries(VALUES), max_size=25), min_size=1, max_size=3),
    suffix=st.sampled_from(FORMATS),
    columns=st.permutations(["a", "b", "c", "d", "k", "s"]).flatmap(
        lambda names: st.integers(1, 6).map(lambda count: names[:count])
    ),
    where=st.sampled_from(FILTERS),
    row_group_rows=st.integers(1, 12),
    shard_bytes=st.integers(1, 600),
    block_rows=st.integers(1, 9),
    task_bytes=st.integers(1, 500),
    prefetch_bytes=st.integers(1, 2000),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_all_blocks_together_are_the_table(
    pool: ThreadPoolExecutor,
    files: list[list[dict[str, Any]]],
    suffix: str,
    columns: list[str],
    where: str | None,
    row_group_rows: int,
    shard_bytes: int,
    block_rows: int,
    task_bytes: int,
    prefetch_bytes: int,
) -> None:
    expected = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_TASK_BYTES", task_bytes)
        for folder_name, rows, k, s in zip(FOLDERS, files, [1, 2, None], ["x", "ä b", "x"], strict=False):
            table = pa.Table.from_pylist(rows, SCHEMA)
            write(Path(folder) / folder_name / f"a{suffix}", table, row_group_rows)
            whole = table.append_column("k", pa.array([k] * len(rows), pa.int64() if k != "x" else None))
            whole = whole.append_column("s", pa.array([s] * len(rows), pa.string()))
            whole = whole.append_column("row", pa.array(range(len(rows)), pa.int64()))
            expected += (whole.filter(Filter(where).expression) if where else whole).to_pylist()
        try:
            shards, projection = plan(folder, columns, where, shard_bytes)
        except EmptyDatasetError:
            assert not expected
            return
        reader = ShardReader(projection, pool, prefetch_bytes)
        blocks = [block for shard in shards for block in reader.read(shard, block_rows)]
    assert all(0 < block.batch.num_rows <= block_rows for block in blocks)
    assert all(block.batch.schema.names == columns for block in blocks)
    assert all(block.rows.dtype == np.int64 for block in blocks)
    assert [row for block in blocks for row in block.rows.tolist()] == [row["row"] for row in expected]
    assert [row for block in blocks for row in block.batch.to_pylist()] == [
        {name: row[name] for name in columns} for row in expected
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_only_partition_columns(
    tmp_path: Path, pool: ThreadPoolExecutor, small_tasks: None, suffix: str
) -> None:
    for k in (1, 2):
        write(tmp_path / f"k={k}" / f"a{suffix}", pa.table({"a": np.arange(10), "b": np.arange(10)}), 4)
    for where, rows in ((None, range(10)), ("a >= 7", range(7, 10)), ("k == 2", range(10))):
        for shard_bytes in (1, 1 << 20):
            shards, projection = plan(tmp_path, ["k"], where, shard_bytes)
            blocks = [b for shard in shards for b in ShardReader(projection, pool, 1000).read(shard, 3)]
            ks = [2] if where == "k == 2" else [1, 2]
            assert joined(blocks).to_pydict() == {"k": [k for k in ks for _ in rows]}
            assert [row for block in blocks for row in block.rows.tolist()] == [*rows] * len(ks)


def test_lists_are_read_a_few_rows_at_a_time(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtfleet.datasets.reading._TASK_BYTES", 4000)
    values = np.arange(100 * 50, dtype=np.uint8).reshape(100, 50)
    lists = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    table = pa.table({"x.y": lists, "x": pa.array(range(100))})
    path = write(tmp_path / "a.parquet", table, 100)
    for columns, most in ((["x.y"], 20), (["x"], 100)):
        shards, projection = plan(path, columns, None, 1 << 30)
        blocks = list(ShardReader(projection, pool, 1 << 20).read(shards[0], 1 << 20))
        assert max(block.batch.num_rows for block in blocks) <= most
        assert [row for block in blocks for row in block.rows.tolist()] == list(range(100))
        assert joined(blocks).to_pydict() == table.select(columns).to_pydict()


def test_a_filter_keeps_the_order_of_a_large_group(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(500_000)}), 500_000)
    shards, projection = plan(path, ["a"], "a not in (7, 499999)", 1 << 30)
    (block,) = ShardReader(projection, pool, 1 << 20).read(shards[0], 1 << 20)
    expected = np.delete(np.arange(500_000), [7, 499_999])
    assert np.array_equal(block.batch["a"].to_numpy(), expected)
    assert np.array_equal(block.rows, expected)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shard_bytes", [200, 1 << 20])
def test_from_s3(
    bucket: str, tmp_path: Path, pool: ThreadPoolExecutor, small_tasks: None, suffix: str, shard_bytes: int
) -> None:
    table = pa.table({"a": np.arange(100), "b": [f"text {n}" for n in range(100)]})
    storage = Storage(f"{bucket}/a b")
    storage.put(f"k=1/x{suffix}", write(tmp_path / f"x{suffix}", table, 30).read_bytes())
    shards, projection = plan(storage.url, ["b", "k"], "a >= 10", shard_bytes)
    reader = ShardReader(projection, pool, 1000)
    blocks = [block for shard in shards for block in reader.read(shard, 7)]
    assert joined(blocks)["b"].to_pylist() == [f"text {n}" for n in range(10, 100)]
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(10, 100))


# --- no more than it takes ---


def damage_column(path: Path, column: int) -> None:
    """Overwrites the pages of one column, leaving everything else."""
    content, meta = bytearray(path.read_bytes()), pq.read_metadata(path)
    for number in range(meta.num_row_groups):
        chunk = meta.row_group(number).column(column)
        offset = chunk.dictionary_page_offset or chunk.data_page_offset
        content[offset : offset + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("shard_bytes", [100, 1 << 20])
def test_other_columns_are_not_read(tmp_path: Path, pool: ThreadPoolExecutor, shard_bytes: int) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(100), "b": np.arange(100)}), 40)
    damage_column(path, 1)
    shards, projection = plan(path, ["a"], "a > 1", shard_bytes)
    blocks = [block for shard in shards for block in ShardReader(projection, pool, 1000).read(shard, 50)]
    assert joined(blocks)["a"].to_pylist() == list(range(2, 100))
    for columns, where in ((["b"], None), (["a"], "b > 1")):
        shards, projection = plan(path, columns, where, shard_bytes)
        with pytest.raises(DatasetError, match=r"cannot read .*a\.parquet, row group 0: .") as raised:
            list(ShardReader(projection, pool, 1000).read(shards[0], 50))
        assert raised.value.hint == "is the file intact?"


class CountingFile:
    """A file that counts the bytes asked of it."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        self.read_bytes = 0
        self.closed = False

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self.read_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_few_bytes_are_read_for_a_narrow_column_of_some_rows(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    wide = pa.array([os.urandom(1000) for _ in range(2000)], pa.binary(1000))
    path = write(tmp_path / f"a{suffix}", pa.table({"wide": wide, "narrow": np.arange(2000)}), 200)
    opened: list[CountingFile] = []

    def open_input(self: Storage, name: str = "", *, mapped: bool = False) -> pa.NativeFile:
        opened.append(CountingFile(f"{self.root}/{name}"))
        return pa.PythonFile(opened[-1], mode="r")

    monkeypatch.setattr(Storage, "open_input", open_input)
    shards, projection = plan(path, ["narrow"])
    blocks = [block for shard in shards for block in ShardReader(projection, pool, 1000).read(shard, 500)]
    assert joined(blocks)["narrow"].to_pylist() == list(range(2000))
    assert 2000 * 8 <= sum(file.read_bytes for file in opened) < path.stat().st_size / 5
    for file in opened:
        file.close()


# --- files that change ---


class TestChangedFiles:
    @pytest.fixture
    def planned(self, tmp_path: Path, pool: ThreadPoolExecutor) -> tuple[Path, list[Shard], ShardReader]:
        path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(1000)}), 100)
        shards, projection = plan(path, ["a"], None, 800)
        assert len(shards) > 3
        return path, shards, ShardReader(projection, pool, 1000)

    def check(self, reader: ShardReader, shard: Shard, words: str) -> None:
        with pytest.raises(
            DatasetError, match=rf"a\.parquet changed under the job: planned .*{words}"
        ) as raised:
            list(reader.read(shard, 10))
        assert "--overwrite" in raised.value.hint

    def test_before_the_first_shard(self, planned: tuple[Path, list[Shard], ShardReader]) -> None:
        path, shards, reader = planned
        write(path, pa.table({"a": np.arange(2000)}), 100)
        self.check(reader, shards[0], "it now has .* bytes")

    def test_between_shards(self, planned: tuple[Path, list[Shard], ShardReader]) -> None:
        path, shards, reader = planned
        assert list(reader.read(shards[0], 10))
        stat = path.stat()
        write(path, pa.table({"a": np.arange(1000)[::-1]}), 100)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
        self.check(reader, shards[1], "version")

    def test_truncated(self, planned: tuple[Path, list[Shard], ShardReader]) -> None:
        path, shards, reader = planned
        os.truncate(path, path.stat().st_size // 2)
        self.check(reader, shards[0], "it now has")

    def test_gone(self, planned: tuple[Path, list[Shard], ShardReader]) -> None:
        path, shards, reader = planned
        path.unlink()
        self.check(reader, shards[0], "it now is gone")

    def test_truncated_with_the_same_size_and_time(self, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
        """As a disk does that lost its last blocks: nothing tells but the content."""
        path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(1000)}), 1000)
        shards, projection = plan(path, ["a"])
        stat = path.stat()
        os.truncate(path, stat.st_size // 2)
        os.truncate(path, stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(DatasetError, match=r"cannot read .*a\.parquet"):
            list(ShardReader(projection, pool, 1000).read(shards[0], 10))

    @pytest.mark.parametrize("suffix", FORMATS)
    def test_on_s3(self, bucket: str, tmp_path: Path, pool: ThreadPoolExecutor, suffix: str) -> None:
        storage = Storage(bucket)
        plain = {"compression": "none"} if suffix == ".parquet" else {}
        content = write(tmp_path / f"a{suffix}", pa.table({"a": np.arange(10)}), 5, **plain).read_bytes()
        storage.put(f"a{suffix}", content)
        shards, projection = plan(bucket, ["a"])
        reader = ShardReader(projection, pool, 1000)
        assert len(joined(list(reader.read(shards[0], 100)))) == 10
        changed = write(tmp_path / f"a{suffix}", pa.table({"a": np.arange(10) + 1}), 5, **plain).read_bytes()
        assert len(changed) == len(content)
        storage.put(f"a{suffix}", changed)
        with pytest.raises(DatasetError, match="changed under the job"):
            list(reader.read(shards[0], 100))


# --- threads and memory ---


@pytest.mark.parametrize("suffix", FORMATS)
def test_row_groups_are_read_at_the_same_time(
    tmp_path: Path, small_tasks: None, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Three reads wait for each other: alone, none would come through."""
    path = write(tmp_path / f"a{suffix}", pa.table({"a": np.arange(300)}), 100)
    shards, projection = plan(path, ["a"])
    together, names = threading.Barrier(3, timeout=60), set()
    read_run: Callable[..., list[Block]] = ShardReader._read_run

    def waiting(*arguments: Any) -> list[Block]:
        names.add(threading.current_thread().name)
        together.wait()
        return read_run(*arguments)

    monkeypatch.setattr(ShardReader, "_read_run", waiting)
    with ThreadPoolExecutor(3, "reader") as pool:
        blocks = list(ShardReader(projection, pool, 1000).read(shards[0], 50))
    assert joined(blocks)["a"].to_pylist() == list(range(300))
    assert len(names) == 3
    assert all(name.startswith("reader") for name in names)


def test_an_abandoned_read_leaves_nothing_running(tmp_path: Path, small_tasks: None) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(1000)}), 10)
    shards, projection = plan(path, ["a"])
    with ThreadPoolExecutor(1) as pool:
        blocks = ShardReader(projection, pool, 1000).read(shards[0], 5)
        next(blocks)
        blocks.close()
        assert pool.submit(lambda: "idle").result(timeout=30) == "idle"


def test_prefetching_is_bounded(tmp_path: Path, small_tasks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"a": np.arange(1000)}), 10)
    shards, projection = plan(path, ["a"])
    started = []
    read_run: Callable[..., list[Block]] = ShardReader._read_run

    def counting(*arguments: Any) -> list[Block]:
        started.append(1)
        return read_run(*arguments)

    monkeypatch.setattr(ShardReader, "_read_run", counting)
    with ThreadPoolExecutor(4) as pool:
        blocks = ShardReader(projection, pool, 500).read(shards[0], 10)
        next(blocks)
        pool.submit(lambda: None).result()
    assert 1 < len(started) <= 500 // 100 + 1


ROW = 10_000
MANY = 20_000
POOLS: list[pa.MemoryPool] = []


def constant_images(rows: int = MANY) -> pa.Table:
    return pa.table({"x": pa.array([b"\0" * ROW], pa.binary(ROW)).take(pa.array(np.zeros(rows, np.int32)))})


def peak_mb(work: Callable[[], int], rows: int = MANY) -> float:
    """Arrow memory that the work takes at most; the work returns its number of rows."""
    before = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(before)
    # Buffers freed later still go back to the pool that they came from.
    POOLS.append(counted)
    pa.set_memory_pool(counted)
    try:
        assert work() == rows
    finally:
        pa.set_memory_pool(before)
    return float(counted.max_memory() / 1e6)


def read_all(path: Path, pool: ThreadPoolExecutor, shard_bytes: int, prefetch_bytes: int) -> int:
    shards, projection = plan(path, ["x"], None, shard_bytes)
    reader = ShardReader(projection, pool, prefetch_bytes)
    return sum(block.batch.num_rows for shard in shards for block in reader.read(shard, 256))


@pytest.mark.parametrize(
    ("name", "rows", "options", "bound_mb"),
    [
        ("small_groups.parquet", 100, {"use_dictionary": False, "compression": "zstd"}, 64),
        ("dictionary.parquet", 100, {}, 64),
        ("batches.arrow", 100, {"compression": "zstd"}, 64),
        # A group larger than a shard is cut, and a piece of at most 1.5 shards is one task.
        ("one_group.parquet", MANY, {"use_dictionary": False, "compression": "zstd"}, 130),
        ("one_dictionary.parquet", MANY, {}, 130),
    ],
)
def test_memory_does_not_follow_the_dataset(
    tmp_path: Path, pool: ThreadPoolExecutor, name: str, rows: int, options: dict[str, Any], bound_mb: int
) -> None:
    """200 MB of constant images, a few kB on disk."""
    path = write(tmp_path / name, constant_images(), rows, **options)
    assert path.stat().st_size < 4 << 20
    assert peak_mb(lambda: read_all(path, pool, 64 << 20, 16 << 20)) < bound_mb
    if path.suffix == ".parquet":
        assert peak_mb(lambda: int(pq.read_table(path).num_rows)) > 190, "the measure sees a whole table"


STREAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import pyarrow as pa
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.footers import inspect
from trtfleet.datasets.reading import Projection, ShardReader
from trtfleet.datasets.shards import plan_shards
dataset = inspect(discover(sys.argv[1:]), ["x"], None)
with ThreadPoolExecutor(4) as pool:
    reader = ShardReader(Projection(columns=("x",), partitions=dataset.partitions), pool, 4 << 20)
    shards = plan_shards(dataset.files, 4 << 20)
    print(sum(block.batch.num_rows for shard in shards for block in reader.read(shard, 256)))
print(pa.default_memory_pool().max_memory())
"""


def test_a_large_group_is_streamed(tmp_path: Path) -> None:
    """Nor is its column chunk read at once, which needs memory of the file that no proxy sees."""
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    path = write(tmp_path / "a.parquet", constant_images(12_000), 12_000, **options)
    assert path.stat().st_size > 120e6
    command = [sys.executable, "-c", STREAM, str(path)]
    rows, peak = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert int(rows) == 12_000
    assert int(peak) < 70e6
