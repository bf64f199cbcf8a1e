"""Merging and publishing: grouping, and that a kill at any moment or a second run at once does no harm."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.litter import forget
from trtfleet.datasets.merge import StagedPart, merge_group, plan_merge
from trtfleet.datasets.naming import HIDDEN, SUCCESS
from trtfleet.datasets.output import Output
from trtfleet.datasets.parts import PartWriter
from trtfleet.datasets.records import CommitRecord, JobRecord, SuccessRecord
from trtfleet.datasets.storage import Entry, Storage
from trtfleet.datasets.swap import publish
from trtfleet.errors import DatasetError, OutputError

FILE_BYTES = 8000
PART_ROWS = {1: [400] * 6, 2: [10, 400, 0, 10, 20, 400, 10]}
"""Rows of each generation's parts; a part of 400 rows is a final file by itself."""


def commit(number: int, part_bytes: int, rows: int = 1) -> CommitRecord:
    part = f"p{number}" if rows else None
    return CommitRecord(
        shard=f"s{number}",
        attempt="a",
        rows=rows,
        bad_rows=0,
        part=part,
        part_bytes=part_bytes,
        sha256="0",
        quarantine=None,
    )


# --- grouping ---


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3)), max_size=30), st.integers(1, 150))
def test_grouping(parts: list[tuple[int, int]], file_bytes: int) -> None:
    commits = [commit(n, size, rows) for n, (size, rows) in enumerate(parts)]
    groups = plan_merge(commits, file_bytes, few_parts=0)
    assert [part for group in groups for part in group.parts] == [c for c in commits if c.part is not None]
    assert [group.number for group in groups] == list(range(len(groups)))
    for group in groups:
        sizes = [part.part_bytes for part in group.parts]
        assert sizes
        if len(sizes) > 1:
            assert sum(sizes) <= file_bytes, "only small parts are rewritten"
            assert all(size * 4 <= file_bytes for size in sizes), "large parts stay whole"
    for left, right in pairwise(groups):
        both = [part.part_bytes for part in (*left.parts, right.parts[0])]
        assert sum(both) > file_bytes or max(both) * 4 > file_bytes, "small neighbours go together"
    assert plan_merge(commits, file_bytes, few_parts=0) == groups


def test_nothing_to_merge() -> None:
    assert plan_merge([]) == []
    assert plan_merge([commit(0, 0, rows=0)]) == []


def test_default_size() -> None:
    many = [commit(n, 60 << 20) for n in range(65)]
    assert [len(group.parts) for group in plan_merge(many)] == [4] * 16 + [1]


def test_few_parts_stay_whole_unless_they_are_tiny() -> None:
    assert [len(group.parts) for group in plan_merge([commit(n, 1 << 20) for n in range(64)])] == [1] * 64
    assert [len(group.parts) for group in plan_merge([commit(n, 1 << 20) for n in range(32)])] == [32]


# --- an output with committed parts ---


def table_of(generation: int, start: int, rows: int) -> pa.Table:
    ids = np.arange(start, start + rows)
    return pa.table(
        {"id": ids, "y": np.random.default_rng(generation).permutation(1 << 16)[ids] / generation}
    )


def build(storage: Storage, generation: int) -> Output:
    """A generation whose shards are all committed; before it, finished, the one before."""
    before = None
    if generation > 1:
        before = build(storage, generation - 1)
        finish(storage, "first")
    job = JobRecord(fingerprint={"g": generation}, resolved={}, shards=len(PART_ROWS[generation]), rows=0)
    output = Output.create(storage, job, after=before)
    start = 0
    for number, rows in enumerate(PART_ROWS[generation]):
        path = output.path("parts", f"s{number}-a.parquet")
        with PartWriter(storage, path, "snappy") as writer:
            for batch in table_of(generation, start, rows).to_batches():
                writer.write(batch)
            part = writer.close()
        start += rows
        output.commit(
            CommitRecord(
                shard=f"s{number}",
                attempt="a",
                rows=rows,
                bad_rows=0,
                part=part.path if part else None,
                part_bytes=part.size_bytes if part else 0,
                sha256=part.sha256 if part else None,
                quarantine=None,
            )
        )
    return output


def merge(output: Output, run: str) -> tuple[list[CommitRecord], list[StagedPart]]:
    commits = sorted(output.committed().values(), key=lambda record: record.shard)
    return commits, [
        merge_group(output, group, run, "snappy") for group in plan_merge(commits, FILE_BYTES, few_parts=0)
    ]


def finish(storage: Storage, run: str) -> SuccessRecord:
    """What a driver does once every shard is committed."""
    output = Output.latest(storage)
    assert output is not None
    standing = output.success()
    if standing is not None:
        return output.finish(standing)
    try:
        commits, finals = merge(output, run)
        return publish(output, finals, commits=commits, seconds=1.0)
    except OutputError:
        theirs = output.success()
        if theirs is None:
            raise
        return output.finish(theirs)


def visible(storage: Storage) -> dict[str, str]:
    """Digest of every file that a plain reader sees."""
    names = [entry.path for entry in storage.list() if not entry.path.startswith((HIDDEN, "_"))]
    return {name: hashlib.sha256(storage.get(name) or b"").hexdigest() for name in names}


def check_success(storage: Storage) -> None:
    """Where ``_SUCCESS`` is, the files are exactly those that it names."""
    data = storage.get(SUCCESS)
    if data is not None:
        record = SuccessRecord.decode(data, SUCCESS)
        assert visible(storage) == {part["name"]: part["sha256"] for part in record.parts}


def check_finished(storage: Storage, expected: dict[str, str], generation: str = "g0002") -> None:
    check_success(storage)
    assert visible(storage) == expected
    assert SuccessRecord.decode(storage.get(SUCCESS) or b"", SUCCESS).generation == generation
    hidden = {entry.path.removeprefix(f"{HIDDEN}/") for entry in storage.list(HIDDEN)}
    kinds = {path.split("/")[1] if path.startswith(generation) else path for path in hidden}
    assert kinds == {"job.json", "success.json", "commits"}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generation 1 finished, generation 2 committed but not merged."""
    folder = tmp_path_factory.mktemp("ready") / "out"
    build(Storage(folder), 2)
    return folder


@pytest.fixture(scope="module")
def expected(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The visible files of an uninterrupted merge."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    shutil.copytree(ready, folder)
    storage = Storage(folder)
    before = visible(storage)
    finish(storage, "only")
    after = visible(storage)
    check_finished(storage, after)
    assert len(before) > len(after) > 3
    assert not set(before.values()) & set(after.values())
    return after


@pytest.fixture
def fresh(ready: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the committed output."""
    numbers = iter(range(10_000))

    def copy() -> Path:
        folder = tmp_path / f"{next(numbers)}"
        shutil.copytree(ready, folder)
        return folder

    return copy


class Killed(BaseException):
    """The process ends here."""


class Watched(Storage):
    """Calls ``before`` and ``after`` around each operation with its number; dead once one of them raises."""

    def __init__(
        self,
        url: str | Path,
        before: Callable[[int], object] = lambda _: None,
        after: Callable[[int], object] = lambda _: None,
    ) -> None:
        super().__init__(url)
        self._before, self._after, self.operations, self._is_dead = before, after, 0, False

    def _do(self, operation: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._is_dead:
            raise Killed
        number = self.operations
        self.operations += 1
        try:
            self._before(number)
            result = operation(*arguments, **options)
            self._after(number)
        except Killed:
            self._is_dead = True
            raise
        return result

    def put_new(self, path: str, data: bytes) -> bool:
        return bool(self._do(super().put_new, path, data))

    def put(self, path: str, data: bytes) -> None:
        self._do(super().put, path, data)

    def get(self, path: str) -> bytes | None:
        found: bytes | None = self._do(super().get, path)
        return found

    def head(self, path: str) -> Entry | None:
        found: Entry | None = self._do(super().head, path)
        return found

    def list(self, prefix: str = "") -> list[Entry]:
        return list(self._do(super().list, prefix))

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._do(super().delete, [path])

    def publish(self, source: str, target: str) -> None:
        self._do(super().publish, source, target)

    def remove_folder(self, path: str) -> None:
        self._do(super().remove_folder, path)

    def link_or_copy(self, source: str, target: str) -> None:
        self._do(super().link_or_copy, source, target)

    def open_input(self, path: str = "", *, mapped: bool = False) -> pa.NativeFile:
        return self._do(super().open_input, path, mapped=mapped)

    def open_output(self, path: str) -> pa.NativeFile:
        return self._do(super().open_output, path)


def kill_at(number: int) -> Callable[[int], None]:
    def kill(current: int) -> None:
        if current == number:
            raise Killed

    return kill


def operations(folder: Path) -> int:
    watched = Watched(folder)
    finish(watched, "counted")
    return watched.operations


# --- merging ---


def test_the_result_is_the_rows_in_order(fresh: Callable[[], Path], expected: dict[str, str]) -> None:
    folder = fresh()
    record = finish(Storage(folder), "r")
    table = pa.concat_tables(pq.read_table(folder / name) for name in sorted(expected))
    rows = sum(PART_ROWS[2])
    assert table.equals(table_of(2, 0, rows))
    assert (record.rows, record.generation, record.seconds) == (rows, "g0002", 1.0)
    for part in record.parts:
        path = folder / part["name"]
        assert part["size_bytes"] == path.stat().st_size
        assert part["rows"] == pq.read_metadata(path).num_rows
    # One part alone is taken as it is, several are rewritten.
    assert [part["rows"] for part in record.parts] == [10, 400, 30, 400, 10]


def test_no_two_generations_share_a_name(fresh: Callable[[], Path]) -> None:
    storage = Storage(fresh())
    before = visible(storage)
    finish(storage, "r")
    assert sorted(before) == [f"part-{number:05d}.parquet" for number in range(6)]
    assert sorted(visible(storage)) == [f"part-{number:05d}-g0002.parquet" for number in range(5)]


def test_what_was_staged_by_another_attempt_is_left_alone(fresh: Callable[[], Path]) -> None:
    """Who was given up and wakes may stage again: nobody shows that."""
    output = Output.latest(Storage(fresh()))
    assert output is not None
    (_, first), (_, second) = merge(output, "r"), merge(output, "r")
    assert [part.name for part in first] == [part.name for part in second]
    assert not {part.path for part in first} & {part.path for part in second}


def test_a_plain_reader_sees_the_final_files_only(fresh: Callable[[], Path]) -> None:
    folder = fresh()
    finish(Storage(folder), "r")
    assert pq.read_table(folder)["id"].to_pylist() == list(range(sum(PART_ROWS[2])))


@pytest.mark.parametrize("number", [1, 3], ids=["alone in its file", "with others in its file"])
@pytest.mark.parametrize("how", ["gone", "truncated", "other rows"])
def test_a_damaged_part(fresh: Callable[[], Path], number: int, how: str) -> None:
    folder = fresh()
    before = visible(Storage(folder))
    path = folder / HIDDEN / "g0002" / "parts" / f"s{number}-a.parquet"
    if how == "gone":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()
        pq.write_table(table_of(2, 0, 3), path)
    with pytest.raises(OutputError, match=rf"s{number}-a\.parquet"):
        finish(Storage(folder), "r")
    assert visible(Storage(folder)) == before
    check_success(Storage(folder))


def test_rows_must_add_up(fresh: Callable[[], Path]) -> None:
    output = Output.latest(Storage(fresh()))
    assert output is not None
    commits, finals = merge(output, "r")
    wrong = [replace(finals[0], rows=11), *finals[1:]]
    with pytest.raises(DatasetError, match="the final files hold 851 rows, the commits 850"):
        publish(output, wrong, commits=commits, seconds=0)
    check_success(output.storage)


# --- killed and repeated ---


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_operation(fresh: Callable[[], Path], expected: dict[str, str], when: str) -> None:
    for number in range(operations(fresh())):
        folder = fresh()
        with pytest.raises(Killed):
            finish(Watched(folder, **{when: kill_at(number)}), "killed")
        storage = Storage(folder)
        check_success(storage)
        finish(storage, "again")
        check_finished(storage, expected)
        shutil.rmtree(folder)


def test_killed_again_and_again(fresh: Callable[[], Path], expected: dict[str, str]) -> None:
    rng = random.Random(0)
    for _ in range(20):
        storage = Storage(fresh())
        for run in range(4):
            kill = kill_at(rng.randrange(60))
            try:
                finish(Watched(storage.url, **{rng.choice(["before", "after"]): kill}), f"r{run}")
            except Killed:
                check_success(storage)
        finish(storage, "last")
        check_finished(storage, expected)


def test_repeating_a_finished_one_changes_nothing(
    fresh: Callable[[], Path], expected: dict[str, str]
) -> None:
    storage = Storage(fresh())
    finish(storage, "one")
    before = storage.list()
    assert finish(storage, "two") == finish(storage, "three")
    assert storage.list() == before
    check_finished(storage, expected)


# --- two runs at once ---


def other_run_at(number: int, folder: Path) -> Callable[[int], None]:
    def run(current: int) -> None:
        if current == number:
            finish(Storage(folder), "other")

    return run


def test_another_run_finishes_at_any_moment(fresh: Callable[[], Path], expected: dict[str, str]) -> None:
    for number in range(operations(fresh())):
        folder = fresh()
        watched = Watched(folder, before=other_run_at(number, folder))
        record = finish(watched, "late")
        assert record.generation == "g0002"
        check_finished(Storage(folder), expected)
        shutil.rmtree(folder)


def test_another_run_finishes_and_the_late_one_is_killed(
    fresh: Callable[[], Path], expected: dict[str, str]
) -> None:
    total, rng = operations(fresh()), random.Random(0)
    for _ in range(60):
        number = rng.randrange(total)
        folder, kill = fresh(), kill_at(number + rng.randrange(6))
        try:
            finish(Watched(folder, before=other_run_at(number, folder), after=kill), "late")
        except Killed:
            pass
        storage = Storage(folder)
        check_success(storage)
        finish(storage, "again")
        check_finished(storage, expected)
        shutil.rmtree(folder)


def test_two_runs_interleave(fresh: Callable[[], Path], expected: dict[str, str]) -> None:
    """Step by step, in random orders, as two drivers on one output do."""
    for seed in range(25):
        folder = fresh()
        rng = random.Random(seed)
        Turns(rng, [folder, folder]).run(lambda storage, run: finish(storage, run))
        check_finished(Storage(folder), expected)
        shutil.rmtree(folder)


class Turns:
    """Lets runs in threads do one storage operation at a time, each time another at random."""

    def __init__(self, rng: random.Random, folders: Sequence[Path]) -> None:
        self._rng, self._folders = rng, folders
        self._changed = threading.Condition()
        self._active = set(range(len(folders)))
        self._turn = rng.choice(sorted(self._active))

    def _next(self) -> None:
        if self._active:
            self._turn = self._rng.choice(sorted(self._active))
        self._changed.notify_all()

    def run(self, work: Callable[[Storage, str], object]) -> None:
        def one(me: int) -> None:
            def wait(_: int) -> None:
                with self._changed:
                    assert self._changed.wait_for(lambda: self._turn == me, timeout=60)

            def passed(_: int) -> None:
                with self._changed:
                    self._next()

            try:
                work(Watched(self._folders[me], before=wait, after=passed), f"run{me}")
            finally:
                with self._changed:
                    self._active.discard(me)
                    self._next()

        with ThreadPoolExecutor(len(self._folders)) as pool:
            list(pool.map(one, range(len(self._folders))))


def test_a_driver_of_an_earlier_generation_changes_nothing(
    tmp_path: Path, fresh: Callable[[], Path], expected: dict[str, str]
) -> None:
    """Overtaken by ``--overwrite`` while it merged."""
    storage = Storage(tmp_path / "out")
    late = build(storage, 1)
    commits, finals = merge(late, "late")
    job = JobRecord(fingerprint={}, resolved={}, shards=0, rows=0)
    later = Output.create(storage, job, after=late)
    with pytest.raises(OutputError, match="has become g0002, this run was for g0001"):
        publish(late, finals, commits=commits, seconds=0)
    assert visible(storage) == {}
    later.storage.put(later.path("parts", "x"), b"")
    forget(storage, late.generation)
    assert later.storage.get(later.path("parts", "x")) == b""


# --- on S3 ---


@pytest.fixture
def s3_copies(bucket: str, ready: Path) -> Callable[[], str]:
    numbers = iter(range(1000))

    def copy() -> str:
        storage = Storage(f"{bucket}/{next(numbers)}")
        for entry in Storage(ready).list():
            storage.put(entry.path, Storage(ready).get(entry.path) or b"")
        return storage.url

    return copy


def test_killed_on_s3(s3_copies: Callable[[], str], expected: dict[str, str]) -> None:
    counted = Watched(s3_copies())
    finish(counted, "counted")
    for number in range(3, counted.operations, 12):
        storage = Storage(s3_copies())
        with pytest.raises(Killed):
            finish(Watched(storage.url, after=kill_at(number)), "killed")
        check_success(storage)
        finish(storage, "again")
        check_finished(storage, expected)


def test_another_run_at_any_moment_on_s3(s3_copies: Callable[[], str], expected: dict[str, str]) -> None:
    counted = Watched(s3_copies())
    finish(counted, "counted")
    for number in range(7, counted.operations, 12):
        url = s3_copies()

        def other(current: int, number: int = number, url: str = url) -> None:
            if current == number:
                finish(Storage(url), "other")

        finish(Watched(url, before=other), "late")
        check_finished(Storage(url), expected)
