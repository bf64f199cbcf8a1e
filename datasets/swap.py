"""The final files of a generation take the place of those before: one step after the other, each repeatable.

    take a permit, look whether another run or a later generation was quicker
    disarm earlier generations
    _SUCCESS of an earlier generation is taken away
    final files of earlier generations are removed
    final files are moved into sight
    success.json, which says that they are                  (Output.finish from here on)
    _SUCCESS

At no time are final files of two generations in sight, nor ``_SUCCESS`` beside others than it names;
``permits`` says how, and what an object store leaves open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from ..errors import DatasetError, OutputError
from .merge import StagedPart
from .naming import SUCCESS, number_of, superseded_finals
from .output import Output
from .permits import disarm_earlier, take_permit
from .records import CommitRecord, FinalPart, SuccessRecord
from .storage import foreign_errors

__all__ = ["publish"]


def publish(
    output: Output, staged: Sequence[StagedPart], *, commits: Iterable[CommitRecord], seconds: float
) -> SuccessRecord:
    """Swaps the final files in for those of an earlier generation, and writes ``_SUCCESS`` last.

    Two runs may do this at once: their files are the same. The one that comes late may find its own copies
    cleaned up; ``Output.success`` then has the record to ``Output.finish`` with.

    Args:
        output: The generation.
        staged: All of its final files.
        commits: One record a shard.
        seconds: What the run has taken.

    Raises:
        OutputError: The storage failed, another run finished meanwhile, or a later generation exists.
        DatasetError: Files and commits disagree on the number of rows.
    """
    records = list(commits)
    rows = sum(final.rows for final in staged)
    if rows != sum(record.rows for record in records):
        raise DatasetError(
            f"the final files hold {rows:,} rows, the commits {sum(r.rows for r in records):,}",
            "this is a defect of trtfleet",
        )
    names = [field.name for field in fields(FinalPart)]
    record = SuccessRecord(
        generation=output.generation,
        rows=rows,
        bad_rows=sum(r.bad_rows for r in records),
        parts=[{name: getattr(final, name) for name in names} for final in staged],
        seconds=seconds,
    )
    try:
        return _swap(output, record, {final.name: final.path for final in staged})
    except OutputError:
        _refuse_later(output)
        raise


def _swap(output: Output, record: SuccessRecord, staged: Mapping[str, str]) -> SuccessRecord:
    storage = output.storage
    with foreign_errors(OutputError, f"cannot publish to {storage.url}"):
        permit = take_permit(storage, output.generation)
        _refuse_later(output)
        standing = output.success()
        if standing is not None:
            return output.finish(standing)
        disarm_earlier(storage, output.generation)
        _take_success_away(output, permit)
        storage.delete(superseded_finals(storage, output.generation, list(staged)))
        for name, path in staged.items():
            storage.publish(path, name)
        return output.finish(record)


def _take_success_away(output: Output, permit: str) -> None:
    """Takes ``_SUCCESS`` of an earlier generation out of sight.

    Raises:
        OutputError: Another run finished meanwhile, or a later generation exists.
    """
    storage = output.storage
    if storage.is_local:
        try:
            storage.publish(SUCCESS, f"{permit}/taken")
        except FileNotFoundError:
            # There is none, or the permit is gone and it stays where it is.
            if storage.head(f"{permit}/permit") is None:
                raise _too_late(output) from None
        return
    data = storage.get(SUCCESS)
    if data is None:
        return
    if _generation_in(data) >= number_of(output.generation):
        _refuse_later(output)
        if output.success() is not None:
            raise _too_late(output)
    storage.delete([SUCCESS])
    # Between those two requests, others may have finished and put their own there.
    _refuse_later(output)


def _generation_in(success: bytes) -> int:
    try:
        return number_of(SuccessRecord.decode(success, SUCCESS).generation)
    except (OutputError, ValueError):
        # Nobody's: what is damaged is replaced.
        return 0


def _too_late(output: Output) -> OutputError:
    return OutputError(
        f"another run has finished {output.generation} of {output.storage.url}", "repeat the command"
    )


def _refuse_later(output: Output) -> None:
    """Looks whether another command has taken the output over.

    Raises:
        OutputError: It has. Its ``_SUCCESS`` is put back, should this run have deleted it a moment ago.
    """
    later = output.later()
    if later is None:
        return
    standing = later.success()
    if standing is not None:
        later.finish(standing)
    raise OutputError(
        f"{output.storage.url} has become {later.generation}, this run was for {output.generation}",
        "another command with --overwrite took over",
    )
