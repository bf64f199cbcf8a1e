"""From committed parts to the final files, in dataset order, restartable at any point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pyarrow.parquet as pq

from ..errors import DatasetError, OutputError
from .output import SUCCESS, Output
from .parts import PartWriter
from .records import CommitRecord, FinalPart, SuccessRecord
from .storage import foreign_errors

__all__ = ["DEFAULT_FILE_BYTES", "FEW_PARTS", "MergeGroup", "merge_group", "plan_merge", "publish"]

DEFAULT_FILE_BYTES = 256 << 20
FEW_PARTS = 64
_WHOLE_PART_SHARE = 4
_TINY_SHARE = 8
_LOOK_AGAIN_S = 1.0
_BY_HAND = "the output was changed by hand; start afresh with --overwrite"


@dataclass(frozen=True, kw_only=True)
class MergeGroup:
    """The parts that become one final file.

    Attributes:
        name: The final file's name.
        parts: Commit records in dataset order, each with a part.
    """

    name: str
    parts: tuple[CommitRecord, ...]


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
    return [
        MergeGroup(name=f"part-{number:05d}.parquet", parts=tuple(group))
        for number, group in enumerate(groups)
    ]


def merge_group(output: Output, group: MergeGroup, run: str, compression: str) -> FinalPart:
    """Makes one final file, still hidden, under this run's own name.

    A single part is linked or copied as it is, several are rewritten into one.

    Raises:
        OutputError: A part is missing or damaged, or the storage failed.
    """
    storage, target = output.storage, output.path("merged", f"{run}/{group.name}")
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
        return FinalPart(name=group.name, rows=only.rows, size_bytes=only.part_bytes, sha256=only.sha256)
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
    return FinalPart(name=group.name, rows=written.rows, size_bytes=written.size_bytes, sha256=written.sha256)


def publish(
    output: Output,
    finals: Sequence[FinalPart],
    run: str,
    *,
    commits: Iterable[CommitRecord],
    seconds: float,
) -> SuccessRecord:
    """Swaps the final files in, removes those of an earlier generation, and writes ``_SUCCESS`` last.

    Two runs may do this at once: their files are the same. The one that comes late may find its own copies
    cleaned up; ``Output.success`` then has the record to ``Output.finish`` with.

    Raises:
        OutputError: The storage failed, another run finished meanwhile, or a later generation exists.
        DatasetError: Files and commits disagree on the number of rows.
    """
    records = list(commits)
    rows = sum(final.rows for final in finals)
    if rows != sum(record.rows for record in records):
        raise DatasetError(
            f"the final files hold {rows:,} rows, the commits {sum(r.rows for r in records):,}",
            "this is a defect of trtfleet",
        )
    record = SuccessRecord(
        generation=output.generation,
        rows=rows,
        bad_rows=sum(r.bad_rows for r in records),
        parts=[asdict(final) for final in finals],
        seconds=seconds,
    )
    try:
        return _swap(output, record, run)
    finally:
        _yield_to_later(output)


def _swap(output: Output, record: SuccessRecord, run: str) -> SuccessRecord:
    storage, names = output.storage, [str(part["name"]) for part in record.parts]
    watch = _Watch(output)
    watch.look()
    with foreign_errors(OutputError, f"cannot publish to {storage.url}"):
        standing = output.success()
        if standing is not None:
            return output.finish(standing)
        watch.look_again()
        storage.delete([SUCCESS])
        for name in names:
            watch.look_again()
            storage.publish(output.path("merged", f"{run}/{name}"), name)
        for name in sorted(set(output.visible()) - set(names)):
            watch.look_again()
            storage.delete([name])
        watch.look()
        return output.finish(record)


def _yield_to_later(output: Output) -> None:
    """Puts back the ``_SUCCESS`` of a later generation, which a run that was frozen has taken for its own."""
    storage = output.storage
    with contextlib.suppress(OutputError), foreign_errors(OutputError, f"cannot publish to {storage.url}"):
        newest = Output.latest(storage)
        if newest is not None and newest.generation != output.generation:
            standing = newest.success()
            if standing is not None and storage.get(SUCCESS) != standing.encode():
                storage.put(SUCCESS, standing.encode())


class _Watch:
    """Looks whether another command has taken the output over, in between the steps of a publication.

    A driver that was frozen in the middle may wake when a later generation stands under the names that it was
    about to write or to delete.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._looked_s = 0.0

    def look_again(self) -> None:
        """Looks, unless it did so a moment ago.

        Raises:
            OutputError: Another command has.
        """
        if time.monotonic() - self._looked_s >= _LOOK_AGAIN_S:
            self.look()

    def look(self) -> None:
        """Looks.

        Raises:
            OutputError: Another command has.
        """
        storage, generation = self._output.storage, self._output.generation
        newest = Output.latest(storage)
        if newest is not None and newest.generation != generation:
            raise OutputError(
                f"{storage.url} has become {newest.generation}, this run was for {generation}",
                "another command with --overwrite took over",
            )
        self._looked_s = time.monotonic()
