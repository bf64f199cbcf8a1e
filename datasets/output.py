"""An output: what is where below OUT, and the protocol by which a shard is committed exactly once.

    OUT/part-00000.parquet ...                      final, in dataset order; all that a plain reader sees
    OUT/_SUCCESS                                    written last
    OUT/_trtfleet/g0001/job.json                    what was asked (a generation per --overwrite)
    OUT/_trtfleet/g0001/parts/<shard>-<attempt>.parquet
    OUT/_trtfleet/g0001/commits/<shard>.json        which attempt won; put-if-absent, never overwritten
    OUT/_trtfleet/g0001/quarantine/<shard>-<attempt>.parquet
    OUT/_trtfleet/g0001/runs/<run>.json             how each run went, for ``status``
    OUT/_trtfleet/g0001/success.json                the same as _SUCCESS; says that parts may be gone

A part becomes part of the result by its commit record alone. Whoever comes second, a slow twin or an actor
believed dead, finds the record there and changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import FingerprintError, OutputError
from .records import CommitRecord, JobRecord, RunRecord, SuccessRecord
from .storage import Storage, foreign_errors

__all__ = ["HIDDEN", "SUCCESS", "Output", "refuse_foreign"]

HIDDEN = "_trtfleet"
SUCCESS = "_SUCCESS"
_GENERATION = re.compile(r"g\d{4,}")
_FINAL = re.compile(r"part-\d{5,}\.parquet")
_IO_THREADS = 32
_READ_AT_ONCE = 4096

_R = TypeVar("_R", bound=CommitRecord | RunRecord)


class Output:
    """One generation of an output.

    Args:
        storage: The output's root.
        generation: Its generation's name, ``g0001`` and up.
        job: What it was asked to hold.
    """

    def __init__(self, storage: Storage, generation: str, job: JobRecord) -> None:
        self.storage = storage
        self.generation = generation
        self.job = job

    @classmethod
    def latest(cls, storage: Storage) -> Output | None:
        """The newest generation, or None where trtfleet has written nothing yet.

        Raises:
            OutputError: The location cannot be read, or holds records of a later version.
        """
        with foreign_errors(OutputError, f"cannot read {storage.url}"):
            names = [name for name in storage.children(HIDDEN)[0] if _GENERATION.fullmatch(name)]
            for generation in sorted(names, key=_number, reverse=True):
                path = f"{HIDDEN}/{generation}/job.json"
                data = storage.get(path)
                if data is not None:
                    return cls(storage, generation, JobRecord.decode(data, storage.describe(path)))
        return None

    @classmethod
    def create(cls, storage: Storage, job: JobRecord, after: Output | None = None) -> Output:
        """Starts a generation; of two drivers at once one creates it and both use it.

        Raises:
            OutputError: The location cannot be written, or holds files of another program.
            FingerprintError: Another driver just started a different job there.
        """
        generation = f"g{_number(after.generation) + 1 if after else 1:04d}"
        path = f"{HIDDEN}/{generation}/job.json"
        with foreign_errors(OutputError, f"cannot write to {storage.url}"):
            if after is None and storage.head(path) is None:
                refuse_foreign(storage)
            if storage.put_new(path, job.encode()):
                return cls(storage, generation, job)
            data = storage.get(path)
        theirs = JobRecord.decode(data or b"", storage.describe(path))
        output = cls(storage, generation, theirs)
        output.require(job.fingerprint)
        return output

    def require(self, fingerprint: Any) -> None:
        """Makes sure that a run asks for what this generation holds.

        Raises:
            FingerprintError: It does not; the message names the first difference.
        """
        ours, theirs = dict(fingerprint), dict(self.job.fingerprint)
        different = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        if different:
            key = different[0]
            more = f" (and {', '.join(different[1:])})" if different[1:] else ""
            raise FingerprintError(
                f"{self.storage.url} holds another job: {key} was {theirs.get(key)!r}, "
                f"now {ours.get(key)!r}{more}",
                "choose another output, repeat the first command, or start afresh with --overwrite",
            )

    def path(self, kind: str, name: str) -> str:
        """Path of a hidden object of this generation below the output."""
        return f"{HIDDEN}/{self.generation}/{kind}/{name}"

    def agree(self, name: str, propose: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What all processes of this generation hold to be ``name``: the first proposal stands.

        Args:
            name: Of the record.
            propose: Called when there is none yet; its result must be JSON.
        """
        found = self.agreed(name)
        if not found:
            proposed = propose()
            with foreign_errors(OutputError, f"cannot write to {self.storage.url}"):
                self.storage.put_new(self._agreement(name), json.dumps(proposed).encode())
            # Another command that finished meanwhile may have removed it.
            found = self.agreed(name) or proposed
        return found

    def agreed(self, name: str) -> dict[str, Any] | None:
        """What all processes hold to be ``name`` already; None when nobody has proposed anything."""
        path = self._agreement(name)
        with foreign_errors(OutputError, f"cannot read {self.storage.url}"):
            data = self.storage.get(path)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError as error:
            raise OutputError(
                f"{self.storage.describe(path)} is damaged: {error}", "start afresh with --overwrite"
            ) from error
        return found if isinstance(found, dict) else {}

    def _agreement(self, name: str) -> str:
        return f"{HIDDEN}/{self.generation}/{name}.json"

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Commits a shard unless another attempt already did.

        Returns:
            The record that stands: ``record``, or the winner's.

        Raises:
            OutputError: The storage failed; whether the commit happened is then unknown, and repeating the
                shard is safe.
        """
        path = self.path("commits", f"{record.shard}.json")
        with foreign_errors(OutputError, f"cannot commit to {self.storage.url}"):
            if self.storage.put_new(path, record.encode()):
                return record
            data = self.storage.get(path)
        if data is None:
            raise OutputError(
                f"{self.storage.describe(path)} is gone: another command finished and cleaned up",
                "repeat the command",
            )
        return CommitRecord.decode(data, self.storage.describe(path))

    def committed(self) -> dict[str, CommitRecord]:
        """Every commit record of this generation, by shard id."""
        return {record.shard: record for record in self._records("commits", CommitRecord.decode)}

    def runs(self) -> list[RunRecord]:
        """Every run's account, oldest first."""
        return sorted(self._records("runs", RunRecord.decode), key=lambda run: run.started_s)

    def _records(self, kind: str, decode: Callable[[bytes, str], _R]) -> Iterable[_R]:
        def read(path: str) -> list[_R]:
            data = self.storage.get(path)
            return [] if data is None else [decode(data, self.storage.describe(path))]

        with foreign_errors(OutputError, f"cannot read {self.storage.url}"):
            paths = [entry.path for entry in self.storage.list(self.path(kind, "").rstrip("/"))]
            records: list[_R] = []
            with ThreadPoolExecutor(_IO_THREADS, "records") as pool:
                # All at once, the futures of a million records would take more memory than the records.
                for start in range(0, len(paths), _READ_AT_ONCE):
                    for found in pool.map(read, paths[start : start + _READ_AT_ONCE]):
                        records.extend(found)
            return records

    def report_run(self, record: RunRecord) -> None:
        """Replaces a run's account."""
        with foreign_errors(OutputError, f"cannot write to {self.storage.url}"):
            self.storage.put(self.path("runs", f"{record.run}.json"), record.encode())

    def success(self) -> SuccessRecord | None:
        """The success record, if this very generation is finished."""
        path = self._success_path
        with foreign_errors(OutputError, f"cannot read {self.storage.url}"):
            data = self.storage.get(path)
        return None if data is None else SuccessRecord.decode(data, self.storage.describe(path))

    def finish(self, record: SuccessRecord) -> SuccessRecord:
        """Marks the output as complete and cleans up; repeating it heals what an interruption left.

        The hidden record comes first and stays: another run on the same output may take ``_SUCCESS`` away for
        the time of its own swap, and dies then perhaps.

        Returns:
            The record that stands: ``record``, or that of a run which finished before.
        """
        with foreign_errors(OutputError, f"cannot write to {self.storage.url}"):
            if not self.storage.put_new(self._success_path, record.encode()):
                record = self.success() or record
            if self.storage.get(SUCCESS) != record.encode():
                self.storage.put(SUCCESS, record.encode())
            self.forget()
        return record

    @property
    def _success_path(self) -> str:
        return f"{HIDDEN}/{self.generation}/success.json"

    def visible(self) -> list[str]:
        """Names of the final files that stand now, of whatever generation."""
        return [entry.path for entry in self.storage.children()[1] if _FINAL.fullmatch(entry.path)]

    def forget(self) -> None:
        """Deletes what a finished output no longer needs: parts, all of earlier generations, and litter.

        Litter are quarantine files of attempts that died before their commit: who reads the folder as a whole
        would find rows of theirs twice.
        """
        parts = self.path("parts", "")
        merged = self.path("merged", "")
        quarantine = self.path("quarantine", "")
        old, kept = [], []
        for entry in self.storage.list(HIDDEN):
            of = entry.path.split("/")[1]
            is_earlier = not _GENERATION.fullmatch(of) or _number(of) < _number(self.generation)
            if is_earlier or entry.path.startswith((parts, merged)):
                old.append(entry.path)
            elif entry.path.startswith(quarantine):
                kept.append(entry.path)
        with ThreadPoolExecutor(_IO_THREADS, "quarantine") as pool:
            old += [
                path
                for path, is_litter in zip(kept, pool.map(self._is_litter, kept), strict=True)
                if is_litter
            ]
        self.storage.delete(old)

    def _is_litter(self, quarantine: str) -> bool:
        """Whether a quarantine file is of another attempt than the one that was committed."""
        shard = quarantine.rpartition("/")[2].partition("-")[0]
        path = self.path("commits", f"{shard}.json")
        data = self.storage.get(path)
        return data is not None and CommitRecord.decode(data, path).quarantine != quarantine


def _number(generation: str) -> int:
    return int(generation[1:])


def refuse_foreign(storage: Storage) -> None:
    """Makes sure that a location without a job of ours holds nothing else either.

    Raises:
        OutputError: It holds files of another program.
    """
    folders, objects = storage.children()
    foreign = [*(entry.path for entry in objects), *(name for name in folders if name != HIDDEN)]
    if foreign:
        raise OutputError(
            f"{storage.url} is not empty: it holds {foreign[0]}, which trtfleet did not write",
            "choose an empty or new location",
        )
