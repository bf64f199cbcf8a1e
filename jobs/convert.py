"""``trtfleet convert``: a dataset rewritten so that its tensors are read fast."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from ..datasets.columns import describe
from ..datasets.convert import ConvertedFiles, FileJob, plan_files
from ..datasets.convert_columns import FastColumn, candidates, settle
from ..datasets.convert_files import FileConverter, read_first_row
from ..datasets.discovery import SourceFile, discover
from ..datasets.footers import inspect, read_schema
from ..datasets.storage import Storage, foreign_errors
from ..errors import DatasetError, MismatchError, UsageError

__all__ = ["CODECS", "ConvertSpec", "ConvertSummary", "run_convert"]

CODECS = {"none": "NONE", "lz4": "LZ4", "snappy": "SNAPPY", "zstd": "ZSTD"}
"""Codecs of converted columns by their names here, with Parquet's."""

_WINDOW_BYTES = 512 << 20
_SAY_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class ConvertSpec:
    """What to convert, and how.

    Attributes:
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        out: Folder or ``s3://`` prefix for the new files.
        column: Columns to convert; all that can be when empty.
        resize: (height, width) that encoded images are decoded to; None leaves them as they are.
        channels: Of decoded images: 1 (grey), 3 (RGB) or 4 (RGBA).
        compression: Codec of the converted columns, one of ``CODECS``.
        threads: Threads that decode; None takes one for each CPU.
        overwrite: Whether files that are there are made anew.

    Raises:
        UsageError: A value is out of range.
    """

    data: tuple[str, ...]
    out: str
    column: tuple[str, ...] = ()
    resize: tuple[int, int] | None = None
    channels: int = 3
    compression: str = "none"
    threads: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("no data was named", "usage: trtfleet convert DATA... OUT")
        if len(set(self.column)) != len(self.column):
            raise UsageError(f"a column is named twice: {', '.join(self.column)}", "name each once")
        if self.resize is not None and min(self.resize) < 1:
            height, width = self.resize
            raise UsageError(f"resize must be at least 1x1, got {height}x{width}", "say 224x224")
        if self.channels not in (1, 3, 4):
            raise UsageError(f"channels must be 1, 3 or 4, got {self.channels}", "3 is RGB")
        if self.compression not in CODECS:
            known = ", ".join(CODECS)
            raise UsageError(f"compression {self.compression!r} is unknown", f"choose one of {known}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be >= 1, got {self.threads}", "leave it out for one a CPU")


@dataclass(frozen=True, kw_only=True)
class ConvertSummary:
    """What was done.

    Attributes:
        out: Where the new files are.
        columns: What is converted.
        files: Files that this call rewrote.
        files_skipped: Files that an earlier call had rewritten.
        rows: Rows of the files rewritten.
        bytes_before: The size of those files before.
        bytes_after: Their size now.
        seconds: From start to end.
    """

    out: str
    columns: tuple[FastColumn, ...]
    files: int
    files_skipped: int
    rows: int
    bytes_before: int
    bytes_after: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "out": self.out,
            "columns": [
                {
                    "name": column.name,
                    "stored": describe(column.stored),
                    "dtype": column.dtype.name,
                    "shape": list(column.shape),
                }
                for column in self.columns
            ],
            "files": self.files,
            "files_skipped": self.files_skipped,
            "rows": self.rows,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """The summary in words."""
        before = f"; {self.files_skipped:,} were there already" if self.files_skipped else ""
        if not self.files:
            return [f"nothing to do: all {self.files_skipped:,} files are in {self.out} already"]
        rate = self.bytes_after / self.seconds / 1e6 if self.seconds else 0.0
        return [
            *(f"{column.name}: {describe(column.stored)} -> {column}" for column in self.columns),
            f"{self.files:,} files with {self.rows:,} rows in {self.out}{before}",
            f"{self.bytes_before:,} bytes -> {self.bytes_after:,} bytes in {self.seconds:.1f} s, "
            f"{rate:,.0f} MB/s written",
        ]


def run_convert(spec: ConvertSpec, say: Callable[[str], None] = lambda text: None) -> ConvertSummary:
    """Rewrites a dataset with its lists, tensors and (with ``resize``) images in the fast layout.

    Every file becomes one Parquet file of the same relative name. The new files become visible when all are
    complete; a call that was interrupted is continued by the same call. All columns keep their values, those
    not converted their types too.

    Args:
        spec: What to do.
        say: Takes sentences for people.

    Raises:
        TrtfleetError: Nothing can be converted, a row does not fit, or storage failed. What was visible
            before still is.
    """
    start_s = time.monotonic()
    files = discover(spec.data)
    storage = Storage(spec.out)
    columns, rows = _columns(files, spec)
    recipe = {
        "columns": {column.name: str(column) for column in columns},
        "images": [column.name for column in columns if column.image is not None],
        "compression": spec.compression,
    }
    jobs = plan_files(files, spec.data, storage, recipe)
    output = ConvertedFiles(storage, jobs, spec.overwrite)
    if output.missing:
        _convert(output, columns, storage, spec, _Told(say, sum(rows[j.source.url] for j in output.missing)))
    size_bytes = output.publish() if output.left else 0
    return ConvertSummary(
        out=storage.url,
        columns=columns,
        files=len(output.left),
        files_skipped=len(jobs) - len(output.left),
        rows=sum(rows[job.source.url] for job in output.left),
        bytes_before=sum(job.source.size_bytes for job in output.left),
        bytes_after=size_bytes,
        seconds=time.monotonic() - start_s,
    )


def _columns(files: Sequence[SourceFile], spec: ConvertSpec) -> tuple[tuple[FastColumn, ...], dict[str, int]]:
    """What is converted, and each file's rows."""
    schema = read_schema(files)
    names = candidates(schema, spec.column, images=spec.resize is not None)
    found: list[FastColumn] = []
    rows: dict[str, int] = {}
    if names:
        dataset = inspect(files, names, None)
        rows = {file.url: sum(group.rows for group in groups) for file, groups in dataset.files}
        filled = next(file for file in files if rows[file.url])
        first = read_first_row(filled, names)
        assert first is not None
        found = settle(first, filled.url, names, spec.column, spec.resize, spec.channels)
    if not found:
        listed = ", ".join(f"{field.name} {describe(field.type)}" for field in list(schema)[:20])
        raise MismatchError(
            f"no column can be converted among: {listed}",
            "lists and tensors of numbers can, and encoded images with --resize HxW",
        )
    return tuple(found), rows


class _StoppedError(Exception):
    """Another file failed."""


class _Told:
    """Counts the rows of all threads, and says now and then how far they are."""

    def __init__(self, say: Callable[[str], None], rows: int) -> None:
        self._say = say
        self._rows = rows
        self._written = 0
        self._lock = threading.Lock()
        self._last_s = time.monotonic()
        self.stop = threading.Event()

    def advance(self, rows: int) -> None:
        """Adds rows; raises when the work is to stop."""
        if self.stop.is_set():
            raise _StoppedError
        with self._lock:
            self._written += rows
            if time.monotonic() - self._last_s >= _SAY_EVERY_S:
                self._last_s = time.monotonic()
                share = 100 * self._written / max(1, self._rows)
                self._say(f"{share:5.1f}%  {self._written:,} of {self._rows:,} rows")


def _convert(
    output: ConvertedFiles, columns: Sequence[FastColumn], storage: Storage, spec: ConvertSpec, told: _Told
) -> None:
    """Writes the files that are missing, several at once."""
    jobs = output.missing
    threads = spec.threads or len(os.sched_getaffinity(0))
    writers = min(threads, len(jobs))
    with ThreadPoolExecutor(threads, "decode") as pool, ThreadPoolExecutor(writers, "convert") as writing:
        converter = FileConverter(
            columns=columns,
            pool=pool,
            window_bytes=_WINDOW_BYTES // writers,
            compression=CODECS[spec.compression],
            progress=told.advance,
        )

        def one(job: FileJob) -> None:
            told.advance(0)
            converter.convert(job.source, storage, output.path(job), job.metadata)
            _check_unchanged(job.source)

        futures = {writing.submit(one, job): job for job in jobs}
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
                output.add(futures[future])
        except BaseException:
            told.stop.set()
            writing.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _check_unchanged(file: SourceFile) -> None:
    with foreign_errors(DatasetError, f"cannot read {file.url}"):
        now = Storage(file.root).head(file.path)
    if now is None or (now.size_bytes, now.version) != (file.size_bytes, file.version):
        raise DatasetError(f"{file.url} changed while it was converted", "run again once the data is stable")
