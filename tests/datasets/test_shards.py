"""Cutting into shards: every row once, in order, sizes near the target, ids that tell what they stand for."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.discovery import Format, SourceFile
from trtfleet.datasets.groups import Group, Groups
from trtfleet.datasets.shard_table import Segment, Shard, ShardTable
from trtfleet.datasets.shards import DEFAULT_SHARD_BYTES, plan_shards, suggest_shard_bytes
from trtfleet.errors import UsageError

Files = list[tuple[SourceFile, list[Group]]]


def source(number: int = 0) -> SourceFile:
    return SourceFile(
        root="/data", path=f"{number}.parquet", size_bytes=1000, version=f"v{number}", format=Format.PARQUET
    )


def group(rows: int, size_bytes: int, keep: bool = True) -> Group:
    return Group(rows=rows, size_bytes=size_bytes, keep=keep)


GROUPS = st.lists(st.builds(group, st.integers(0, 50), st.integers(0, 5000), st.booleans()), max_size=8)
FILES = st.lists(GROUPS, max_size=5).map(
    lambda files: [(source(i), groups) for i, groups in enumerate(files)]
)


def rows_of(shards: Sequence[Shard]) -> list[tuple[str, int, int, int]]:
    """(file, group, row in the group, row in the file) of every row, in shard order."""
    return [
        (shard.file.path, segment.group, segment.offset + row, segment.first_row + row)
        for shard in shards
        for segment in shard.segments
        for row in range(segment.rows)
    ]


@given(FILES, st.integers(1, 3000))
def test_every_kept_row_is_in_exactly_one_shard_in_order(files: Files, shard_bytes: int) -> None:
    expected = []
    for file, groups in files:
        first_row = 0
        for number, each in enumerate(groups):
            if each.keep:
                expected += [(file.path, number, row, first_row + row) for row in range(each.rows)]
            first_row += each.rows
    shards = plan_shards(files, shard_bytes)
    assert rows_of(shards) == expected
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert all(segment.rows > 0 for shard in shards for segment in shard.segments)
    assert sum(shard.rows for shard in shards) == len(expected)


@given(FILES, st.integers(1, 3000))
def test_sizes_are_near_the_target(files: Files, shard_bytes: int) -> None:
    row_bytes = {
        (file.path, number): each.size_bytes / each.rows
        for file, groups in files
        for number, each in enumerate(groups)
        if each.rows
    }
    shards = plan_shards(files, shard_bytes)
    for shard in shards:
        sizes = [segment.rows * row_bytes[shard.file.path, segment.group] for segment in shard.segments]
        one_row = max(row_bytes[shard.file.path, segment.group] for segment in shard.segments)
        # A row cannot be cut, and a group is cut only from half as much again.
        assert sum(sizes) <= 1.5 * shard_bytes + one_row + len(sizes)
        assert abs(shard.size_bytes - sum(sizes)) <= len(sizes)
    for left, right in pairwise(shards):
        if left.file == right.file:
            first = right.segments[0]
            added = first.rows * row_bytes[right.file.path, first.group]
            assert left.size_bytes + added + 2 > shard_bytes, "two shards would have fitted into one"


@given(FILES, st.integers(1, 3000))
def test_ids_are_stable_and_distinct(files: Files, shard_bytes: int) -> None:
    ids = [shard.id for shard in plan_shards(files, shard_bytes)]
    assert ids == [shard.id for shard in plan_shards(files, shard_bytes)]
    assert len(set(ids)) == len(ids)
    assert all(len(name) == 20 and name.isalnum() for name in ids)


def test_an_id_is_the_digest_that_resumed_jobs_rely_on() -> None:
    file = source(7)
    together, cut, again = plan_shards([(file, [group(10, 40), group(5, 40), group(9, 200)])], 100)
    names = ["0:0+10,1:0+5", "2:0+4", "2:4+5"]
    digests = [hashlib.sha256(f"/data/7.parquet\0{1000}\0v7\0{rows}".encode()) for rows in names]
    assert [together.id, cut.id, again.id] == [digest.hexdigest()[:20] for digest in digests]
    assert [together.size_bytes, cut.size_bytes, again.size_bytes] == [80, 88, 111]


def test_a_shard_survives_the_way_to_an_actor() -> None:
    for shard in plan_shards([(source(), [group(10, 40), group(5, 40), group(9, 200)])], 100):
        travelled = pickle.loads(pickle.dumps(shard))
        assert travelled == shard
        assert travelled.rows == shard.rows
        assert not hasattr(travelled, "__dict__")


def test_ids_change_with_what_they_stand_for() -> None:
    file, groups = source(), [group(10, 100), group(10, 100)]

    def ids(of: SourceFile, shard_bytes: int = 1000, skipped: bool = False) -> set[str]:
        kept = [groups[0], replace(groups[1], keep=not skipped)]
        return {shard.id for shard in plan_shards([(of, kept)], shard_bytes)}

    variants = [
        ids(file),
        ids(replace(file, size_bytes=1001)),
        ids(replace(file, version="v1")),
        ids(replace(file, path="1.parquet")),
        ids(replace(file, root="/other")),
        ids(file, shard_bytes=100),
        ids(file, shard_bytes=50),
        ids(file, skipped=True),
    ]
    together = [name for variant in variants for name in variant]
    # One shard per row group is the first group alone, which is also what is left when the second is skipped.
    assert variants[7] < variants[5]
    assert len(set(together)) == len(together) - 1


def test_an_id_does_not_depend_on_the_other_files() -> None:
    alone = plan_shards([(source(1), [group(5, 10)])], 100)
    among = plan_shards([(source(0), [group(5, 10)]), (source(1), [group(5, 10)])], 100)
    assert alone[0].id == among[1].id
    assert (alone[0].index, among[1].index) == (0, 1)


def test_small_groups_are_packed_and_large_ones_cut() -> None:
    shards = plan_shards([(source(), [group(1, 40), group(1, 40), group(1, 40), group(10, 300)])], 100)
    assert [[(s.group, s.offset, s.rows) for s in shard.segments] for shard in shards] == [
        [(0, 0, 1), (1, 0, 1)],
        [(2, 0, 1)],
        [(3, 0, 3)],
        [(3, 3, 3)],
        [(3, 6, 4)],
    ]


def test_files_do_not_share_a_shard() -> None:
    shards = plan_shards([(source(i), [group(1, 1)]) for i in range(3)], 100)
    assert [shard.file.path for shard in shards] == ["0.parquet", "1.parquet", "2.parquet"]


def test_a_row_larger_than_a_shard() -> None:
    shards = plan_shards([(source(), [group(3, 3000)])], 10)
    assert [(shard.rows, shard.size_bytes) for shard in shards] == [(1, 1000)] * 3


def test_shard_bytes_must_be_positive() -> None:
    with pytest.raises(UsageError, match="shard_bytes must be >= 1, got 0"):
        plan_shards([], 0)


@given(st.integers(0, 1 << 50), st.integers(0, 10_000))
def test_suggestion(total: int, actors: int) -> None:
    suggested = suggest_shard_bytes(total, actors)
    assert 1 <= suggested <= DEFAULT_SHARD_BYTES
    if suggested == DEFAULT_SHARD_BYTES or total < 1 << 20 or not actors:
        return
    assert suggested == 16 << 10 or total / suggested >= 8 * actors


SEGMENTS = st.lists(
    st.builds(
        Segment,
        group=st.integers(0, 9),
        offset=st.integers(0, 1 << 40),
        rows=st.integers(0, 1 << 40),
        first_row=st.integers(0, 1 << 40),
    ),
    max_size=3,
)
SHARDS = st.lists(st.tuples(st.integers(0, 3), SEGMENTS, st.integers(0, 1 << 62)), max_size=9)


@given(SHARDS)
def test_a_table_gives_back_the_shards_that_it_was_given(
    told: list[tuple[int, list[Segment], int]],
) -> None:
    files = [source(number) for number in range(4)]
    shards = [
        Shard(id=f"s{place}", index=place, file=files[of], segments=tuple(segments), size_bytes=size)
        for place, (of, segments, size) in enumerate(told)
    ]
    table = ShardTable.of(shards)
    assert list(table) == shards
    assert table[-2:] == shards[-2:]
    assert table[::3] == shards[::3]
    assert list(table.weights) == [(shard.id, shard.rows) for shard in shards]
    assert table.rows_total == sum(shard.rows for shard in shards)
    assert [table.named(shard.id) for shard in shards] == shards
    assert table.places == {shard.id: shard.index for shard in shards}
    assert ShardTable.of(table) is table
    with pytest.raises(IndexError):
        table[len(shards)]
    with pytest.raises(KeyError):
        table.named("no shard of theirs")


@given(GROUPS)
def test_groups_in_columns_are_the_same_sequence(groups: list[Group]) -> None:
    packed = Groups(groups)
    assert list(packed) == [packed[place] for place in range(len(packed))] == groups
    assert packed[1:4] == tuple(groups[1:4])
    assert packed.rows == sum(each.rows for each in groups if each.keep)
    assert packed.size_bytes == sum(each.size_bytes for each in groups if each.keep)
    assert list(plan_shards([(source(), packed)], 100)) == list(plan_shards([(source(), groups)], 100))
