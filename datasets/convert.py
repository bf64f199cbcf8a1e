"""Where a converted dataset's files go: names, what earlier calls left, and when new files become visible."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import OutputError, UsageError
from .discovery import SourceFile
from .storage import Storage, foreign_errors

__all__ = ["ConvertedFiles", "FileJob", "plan_files"]

_STAGING = "_trtfleet/convert"
_RECORD = "trtfleet.converted"
_SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
_FOOTER_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file to rewrite.

    Attributes:
        source: What to read.
        target: The new file's path below the output.
        recipe: Everything besides the source that decides the new file's content, as JSON has it.
    """

    source: SourceFile
    target: str
    recipe: Mapping[str, Any]

    @property
    def metadata(self) -> dict[str, str]:
        """What the new file's key-value metadata says of where it comes from."""
        return {_RECORD: json.dumps(self._record)}

    @property
    def _record(self) -> dict[str, Any]:
        source = self.source
        return {
            "source": source.url,
            "size_bytes": source.size_bytes,
            "version": source.version,
            **self.recipe,
        }

    def made(self, storage: Storage, path: str) -> bool:
        """Whether an object is this job's complete result."""
        try:
            with storage.open_input(path) as source:
                text = (pq.read_metadata(source).metadata or {}).get(_RECORD.encode())
            return bool(text is not None and json.loads(text) == self._record)
        except (OSError, pa.ArrowException, ValueError):
            return False


def plan_files(
    files: Sequence[SourceFile], data: Sequence[str], storage: Storage, recipe: Mapping[str, Any]
) -> list[FileJob]:
    """Names the new file of each file: the same relative path, with the suffix ``.parquet``.

    Args:
        files: The dataset.
        data: The locations that it was found in.
        storage: The output.
        recipe: See ``FileJob``.

    Raises:
        UsageError: Old and new files would mix, or two files become one.
    """
    sources = {file.url for file in files}
    for location in {Storage(each).url for each in data} - sources:
        if f"{storage.url}/".startswith(f"{location}/"):
            raise UsageError(
                f"the output {storage.url} lies inside the data {location}, which would make it data",
                "write the new files beside the data",
            )
    found: dict[str, SourceFile] = {}
    for file in files:
        stem, suffix = os.path.splitext(file.path)
        target = f"{stem if suffix.lower() in _SUFFIXES else file.path}.parquet"
        if target in found:
            raise UsageError(
                f"{found[target].url} and {file.url} would both become {storage.describe(target)}",
                "convert them into different folders",
            )
        if storage.describe(target) in sources:
            raise UsageError(f"{storage.describe(target)} would replace the data", "name another folder")
        found[target] = file
    return [FileJob(source=file, target=target, recipe=recipe) for target, file in found.items()]


class ConvertedFiles:
    """The new files of a dataset.

    They are written below ``_trtfleet/convert``, by each run under a name of its own, and become visible when
    all are complete. A file that says in its footer that it is the result of a job needs no second run.

    Args:
        storage: The output.
        jobs: All files.
        overwrite: Whether to replace what is visible.

    Raises:
        OutputError: The output cannot be read, or holds something else under a new file's name.
    """

    def __init__(self, storage: Storage, jobs: Sequence[FileJob], overwrite: bool) -> None:
        self._storage = storage
        self._run = secrets.token_hex(4)
        if storage.is_local and os.path.isfile(storage.root):
            raise OutputError(f"{storage.url} is a file", "name a folder")
        with foreign_errors(OutputError, f"cannot read {storage.url}"):
            present = {entry.path for entry in storage.list()}
            visible = [job for job in jobs if job.target in present and not overwrite]
            wrong = [job for job, good in self._made([(job, job.target) for job in visible]) if not good]
        if wrong:
            raise OutputError(
                f"{storage.describe(wrong[0].target)} is there, but not made of {wrong[0].source.url} as it "
                "is now, with these options",
                "name another folder, or say --overwrite",
            )
        done = {job.target for job in visible}
        self.left = [job for job in jobs if job.target not in done]
        """The jobs whose files are not visible yet, or to be replaced."""
        self._staged = self._find_staged(present)

    @property
    def missing(self) -> list[FileJob]:
        """The jobs whose files are yet to be written."""
        return [job for job in self.left if job.target not in self._staged]

    def path(self, job: FileJob) -> str:
        """Where to write a job's file."""
        return f"{_STAGING}/{self._run}/{job.target}"

    def add(self, job: FileJob) -> None:
        """Takes note that the file at ``path`` is complete."""
        self._staged[job.target] = self.path(job)

    def publish(self) -> int:
        """Makes all files visible once none is missing, and removes what runs left; returns their bytes.

        Raises:
            OutputError: The storage failed; the same call goes on where it stopped.
        """
        with foreign_errors(OutputError, f"cannot write {self._storage.url}"):
            for job in self.left:
                self._publish_one(self._staged[job.target], job)
            sizes = {entry.path: entry.size_bytes for entry in self._storage.list()}
        self._clean(sizes)
        return sum(sizes.get(job.target, 0) for job in self.left)

    def _made(self, pairs: Sequence[tuple[FileJob, str]]) -> list[tuple[FileJob, bool]]:
        with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
            answers = pool.map(lambda pair: pair[0].made(self._storage, pair[1]), pairs)
            return [(job, good) for (job, _), good in zip(pairs, answers, strict=True)]

    def _find_staged(self, present: Iterable[str]) -> dict[str, str]:
        by_target = {job.target: job for job in self.left}
        pairs = []
        for path in sorted(path for path in present if path.startswith(f"{_STAGING}/")):
            # Below the staging folder come the run and the target.
            target = path.removeprefix(f"{_STAGING}/").partition("/")[2]
            if target in by_target:
                pairs.append((by_target[target], path))
        with foreign_errors(OutputError, f"cannot read {self._storage.url}"):
            answers = self._made(pairs)
        return {job.target: path for (job, path), (_, good) in zip(pairs, answers, strict=True) if good}

    def _publish_one(self, path: str, job: FileJob) -> None:
        storage = self._storage
        if storage.is_local:
            os.makedirs(os.path.dirname(os.path.join(storage.root, job.target)), exist_ok=True)
        try:
            storage.publish(path, job.target)
        except FileNotFoundError:
            # Another process at the same work may have been a moment faster.
            if not job.made(storage, job.target):
                raise

    def _clean(self, present: Iterable[str]) -> None:
        # What cannot be removed is only litter.
        with contextlib.suppress(Exception):
            self._storage.delete([path for path in present if path.startswith(f"{_STAGING}/")])
        self._storage.remove_empty_folders(_STAGING)
