"""An output: what is where below OUT, and the protocol by which a shard is committed exactly once.

    OUT/part-00000.parquet ...                      final, in dataset order; all that a plain reader sees
    OUT/part-00000-g0002.parquet ...                the same of the second generation
    OUT/_SUCCESS                                    written last
    OUT/_trtfleet/g0001/job.json                    what was asked (a generation per --overwrite)
    OUT/_trtfleet/g0001/parts/<shard>-<attempt>.parquet
    OUT/_trtfleet/g0001/commits/<shard>.json        which attempt won; put-if-absent, never overwritten
    OUT/_trtfleet/g0001/quarantine/<shard>-<attempt>.parquet
    OUT/_trtfleet/g0001/runs/<run>.json             how each run went, for ``status``
    OUT/_trtfleet/g0001/merged/                     what is about to become visible
    OUT/_trtfleet/g0001/permits/                    of runs that are about to make it so
    OUT/_trtfleet/g0001/success.json                the same as _SUCCESS; says that parts may be gone

A part becomes part of the result by its commit record alone. Whoever comes second, a slow twin or an actor
believed dead, finds the record there and changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..errors import FingerprintError, OutputError, RecordsGoneError
from .litter import forget
from .naming import HIDDEN, SUCCESS, generations, hidden_path, number_of, superseded_finals
from .permits import STAGED, revoke
from .records import CommitRecord, JobRecord, RunRecord, SuccessRecord, kind_of
from .storage import Storage, foreign_errors

__all__ = ["HIDDEN", "SUCCESS", "Output", "refuse_foreign"]

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
            for generation in generations(storage):
                path = hidden_path(generation, "job.json")
                data = storage.get(path)
                if data is not None:
                    return cls(storage, generation, JobRecord.decode(data, storage.describe(path)))
        return None

    @classmethod
    def create(cls, storage: Storage, job: JobRecord, after: Output | None = None) -> Output:
        """Starts a generation; of two drivers at once one creates it and both use it.

        Raises:
            OutputError: The location cannot be written, or holds files of another program.
            FingerprintError: Another driver just started a different job there, or the earlier one was of
                another kind.
            RecordsGoneError: Another driver had started the same job, and has finished and cleaned up.
        """
        if after is not None:
            after.require_kind(job.fingerprint)
        generation = f"g{number_of(after.generation) + 1 if after else 1:04d}"
        path = hidden_path(generation, "job.json")
        with foreign_errors(OutputError, f"cannot write to {storage.url}"):
            if after is None and storage.head(path) is None:
                refuse_foreign(storage)
            if storage.put_new(path, job.encode()):
                return cls(storage, generation, job)
            data = storage.get(path)
        if data is None:
            raise _gone(storage.describe(path))
        theirs = JobRecord.decode(data, storage.describe(path))
        output = cls(storage, generation, theirs)
        output.require(job.fingerprint)
        return output

    def require_kind(self, fingerprint: Mapping[str, Any]) -> None:
        """Makes sure that a run is of the kind that this output is for.

        Kinds write different files: not even ``--overwrite`` would take those of another one away.

        Raises:
            FingerprintError: It is of another kind.
        """
        theirs, ours = kind_of(self.job.fingerprint), kind_of(fingerprint)
        if theirs != ours:
            raise FingerprintError(
                f"{self.storage.url} holds {theirs}, and this is {ours}",
                "choose another output, or delete that one",
            )

    def require(self, fingerprint: Mapping[str, Any]) -> None:
        """Makes sure that a run asks for what this generation holds.

        Raises:
            FingerprintError: It does not; the message names the first difference.
        """
        self.require_kind(fingerprint)
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
        return hidden_path(self.generation, kind, name)

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
        return hidden_path(self.generation, f"{name}.json")

    def commit(self, record: CommitRecord) -> CommitRecord:
        """Commits a shard unless another attempt already did.

        Returns:
            The record that stands: ``record``, or the winner's.

        Raises:
            RecordsGoneError: Another command finished and cleaned up.
            OutputError: The storage failed; whether the commit happened is then unknown, and repeating the
                shard is safe.
        """
        path = self.path("commits", f"{record.shard}.json")
        with foreign_errors(OutputError, f"cannot commit to {self.storage.url}"):
            if self.storage.put_new(path, record.encode()):
                return record
            data = self.storage.get(path)
        if data is None:
            raise _gone(self.storage.describe(path))
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

        The hidden record comes first and stays: ``_SUCCESS`` is made of it. Where a later generation exists,
        its ``_SUCCESS`` is left alone.

        Returns:
            The record that stands: ``record``, or that of a run which finished before.
        """
        storage, path = self.storage, self._success_path
        with foreign_errors(OutputError, f"cannot write to {storage.url}"):
            data = record.encode()
            if not storage.put_new(path, data):
                data = storage.get(path) or data
                record = SuccessRecord.decode(data, storage.describe(path))
            # From here on, no other run at this generation takes _SUCCESS away for its own swap.
            revoke(storage, self.generation)
            if storage.get(SUCCESS) != data:
                self._show_success(data)
            names = [str(part["name"]) for part in record.parts]
            # A server may have been in the middle of a copy for a run of an earlier generation.
            storage.delete(superseded_finals(storage, self.generation, names))
            forget(storage, self.generation)
        return record

    def _show_success(self, data: bytes) -> None:
        staged = self.path(STAGED, f"{SUCCESS}-{secrets.token_hex(8)}")
        self.storage.put(staged, data)
        if self.later() is None:
            # Another run may have finished, and a later generation have begun its swap: both remove it.
            with contextlib.suppress(FileNotFoundError):
                self.storage.publish(staged, SUCCESS)

    def later(self) -> Output | None:
        """The newest generation, if it is a later one than this."""
        newest = Output.latest(self.storage)
        is_later = newest is not None and number_of(newest.generation) > number_of(self.generation)
        return newest if is_later else None

    @property
    def _success_path(self) -> str:
        return hidden_path(self.generation, "success.json")


def _gone(name: str) -> RecordsGoneError:
    return RecordsGoneError(f"{name} is gone: another command finished and cleaned up", "repeat the command")


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
