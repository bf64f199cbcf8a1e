"""From committed parts to the final files, in dataset order, still hidden."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow.parquet as pq

from ..errors import OutputError
from .naming import final_name
from .output import Output
from .parts import PartWriter
from .permits import STAGED
from .records import CommitRecord, FinalPart
from .storage import foreign_errors

__all__ = ["DEFAULT_FILE_BYTES", "FEW_PARTS", "MergeGroup", "StagedPart", "merge_group", "plan_merge"]

DEFAULT_FILE_BYTES = 256 << 20
FEW_PARTS = 64
_WHOLE_PART_SHARE = 4
_TINY_SHARE = 8
_BY_HAND = "the output was changed by hand; start afresh with --overwrite"


@dataclass(frozen=True, kw_only=True)
class MergeGroup:
    """The parts that become one final file.

    Attributes:
        number: Of the final file, from 0.
        parts: Commit records in dataset order, each with a part.
    """

    number: int
    parts: tuple[CommitRecord, ...]


@dataclass(frozen=True, kw_only=True)
class StagedPart(FinalPart):
    """A final file that is still hidden.

    Attributes:
        path: Where, below the output; no other attempt has written or will write there.
    """

    path: str


def plan_merge(
    commits: Iterable[CommitRecord], file_bytes: int = DEFAULT_FILE_BYTES, few_parts: int = FEW_PARTS
) -> list[MergeGroup]:
    """Groups committed parts into final files of about ``file_bytes``; large parts stay whole.

    So do all parts where there are few of them: a folder of some dozen files needs no rewriting. A handful of
    tiny parts is put together anyway, which costs nothing.

    Args:
        commits: One record a shard, in dataset order.
        file_bytes: Target length of a final file.
        few_parts: So many parts stay whole, unless they are tiny altogether.
    """
    written = [commit for commit in commits if commit.part is not None]
    is_tiny = sum(commit.part_bytes for commit in written) <= file_bytes // _TINY_SHARE
    groups: list[list[CommitRecord]] = []
    filled = file_bytes
    for commit in written:
        if len(written) <= few_parts and not is_tiny:
            groups.append([commit])
            continue
        if filled + commit.part_bytes > file_bytes or commit.part_bytes * _WHOLE_PART_SHARE > file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(commit)
        filled += commit.part_bytes
        if commit.part_bytes * _WHOLE_PART_SHARE > file_bytes:
            filled = file_bytes
    return [MergeGroup(number=number, parts=tuple(group)) for number, group in enumerate(groups)]


def merge_group(output: Output, group: MergeGroup, run: str, compression: str) -> StagedPart:
    """Makes one final file, still hidden, under a name of this attempt's own.

    A single part is linked or copied as it is, several are rewritten into one.

    Raises:
        OutputError: A part is missing or damaged, or the storage failed.
    """
    storage, name = output.storage, final_name(group.number, output.generation)
    # Who was given up may wake and write on: not under a name that another attempt has staged.
    target = output.path(STAGED, f"{run}/{secrets.token_hex(4)}-{name}")
    if len(group.parts) == 1:
        (only,) = group.parts
        assert only.part is not None
        assert only.sha256 is not None
        with foreign_errors(OutputError, f"cannot publish {storage.describe(only.part)}"):
            entry = storage.head(only.part)
            if entry is None or entry.size_bytes != only.part_bytes:
                found = "is gone" if entry is None else f"has {entry.size_bytes:,} bytes"
                raise OutputError(
                    f"{storage.describe(only.part)} {found}, its commit says {only.part_bytes:,}", _BY_HAND
                )
            storage.link_or_copy(only.part, target)
        return StagedPart(
            name=name, rows=only.rows, size_bytes=only.part_bytes, sha256=only.sha256, path=target
        )
    with PartWriter(storage, target, compression) as writer:
        for commit in group.parts:
            assert commit.part is not None
            with (
                foreign_errors(OutputError, f"cannot read {storage.describe(commit.part)}"),
                storage.open_input(commit.part) as source,
            ):
                parquet = pq.ParquetFile(source)
                if parquet.metadata.num_rows != commit.rows:
                    raise OutputError(
                        f"{storage.describe(commit.part)} has {parquet.metadata.num_rows:,} rows, "
                        f"its commit says {commit.rows:,}",
                        _BY_HAND,
                    )
                for number in range(parquet.num_row_groups):
                    for batch in parquet.read_row_group(number, use_threads=False).to_batches():
                        writer.write(batch)
        written = writer.close()
    assert written is not None
    return StagedPart(
        name=name, rows=written.rows, size_bytes=written.size_bytes, sha256=written.sha256, path=target
    )
