"""A table of commit records gives back what it was given, whatever a record looks like."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.discovery import SourceFile
from trtfleet.datasets.records import CommitRecord
from trtfleet.datasets.shard_table import Shard, ShardTable
from trtfleet.jobs.commit_table import CommitTable

TEXT = st.text(max_size=8)
HEX = st.sampled_from(["ab" * 32, "cd" * 32, "AB" * 32, "a" * 63, "  " + "ab" * 31, "", "0"])
FILE = SourceFile(root="/data", path="x.parquet", size_bytes=1, version="1", format="parquet")
RECORDS = st.builds(
    CommitRecord,
    shard=TEXT,
    attempt=TEXT,
    rows=st.integers(0, 2**40),
    bad_rows=st.sampled_from([0, 0, 9]),
    part=st.none() | TEXT,
    part_bytes=st.integers(0, 2**40) | st.just(2**70),
    sha256=st.none() | HEX,
    quarantine=st.none() | st.none() | TEXT,
    committed_s=st.floats(0, 2e9),
)


def usual(record: CommitRecord, folder: str) -> CommitRecord:
    return replace(record, part=f"{folder}{record.shard}-{record.attempt}.parquet", sha256="ef" * 32)


@given(st.lists(RECORDS), st.sampled_from(["", "a/", "b/"]), st.booleans())
def test_it_is_the_same_mapping_as_a_dict(records: list[CommitRecord], folder: str, again: bool) -> None:
    ids = sorted({record.shard for record in records})
    shards = [
        Shard(id=name, index=place, file=FILE, segments=(), size_bytes=1) for place, name in enumerate(ids)
    ]
    told = [*records, *(usual(record, folder) for record in records)]
    plain = {record.shard: record for record in (told if again else reversed(told))}
    table = CommitTable(ShardTable.of(shards))
    for record in told if again else reversed(told):
        table[record.shard] = record
    assert dict(table) == plain
    assert table.counts() == {shard: (record.rows, record.bad_rows) for shard, record in plain.items()}
    assert dict(CommitTable(ShardTable.of(shards), plain.values())) == plain
    assert list(table) == ids
    assert len(table) == len(plain)
    assert "no shard of theirs" not in table
    for name in ids[::2]:
        del table[name]
        with pytest.raises(KeyError):
            table[name]
        assert name not in table
    assert len(table) == len(ids[1::2])
