"""The JSON records an output keeps of its job: what was asked, which attempts won, how runs went."""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, get_args, get_origin, get_type_hints

from ..errors import OutputError
from .naming import FINAL

__all__ = [
    "FORMAT",
    "CommitRecord",
    "FinalPart",
    "JobRecord",
    "RunRecord",
    "SuccessRecord",
    "kind_of",
]

FORMAT = 2
"""Version of the output layout; a record of a higher one is refused.

1: final files of every generation have the same names. 2: those above the first have it in their names.
"""

# What a commit names is read, linked and moved: it must lie below the output.
_BELOW = re.compile(r"((?!\.{1,2}/)[^/\\\0]+/)*(?!\.{1,2}$)[^/\\\0]+")


class _Record:
    """Reads and writes a dataclass as JSON; unknown fields of the same format are ignored."""

    def check(self) -> None:
        """Refuses values of the right kind that cannot be, as a record from anywhere may have.

        Raises:
            ValueError: One cannot be.
        """

    def encode(self) -> bytes:
        """The record as UTF-8 JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()  # type: ignore[call-overload]

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Reads a record.

        Raises:
            OutputError: It is damaged, or a later version of trtfleet wrote it.
        """
        try:
            values = json.loads(data)
            version = values["format"]
            if type(version) is int and 1 <= version <= FORMAT:
                kinds = _kinds(cls)  # type: ignore[arg-type]
                known = {key: value for key, value in values.items() if key in kinds}
                for key, value in known.items():
                    if not _fits(value, kinds[key]):
                        raise ValueError(f"{key} cannot be {type(value).__name__}")
                record = cls(**known)
                record.check()
                return record
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            said = " ".join(str(error).split())[:200]
            raise OutputError(f"{name} is damaged: {said}", "it was not written by trtfleet") from error
        raise OutputError(
            f"{name} has format {' '.join(str(version).split())[:40]}, this trtfleet reads format {FORMAT}",
            "upgrade trtfleet",
        )


@functools.cache
def _kinds(record: type) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {f.name: hints[f.name] for f in fields(record)}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of an annotated kind, as far as records use them."""
    if kind is Any:
        return True
    if kind is int:
        return type(value) is int
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if arguments:
        return any(_fits(value, one) for one in arguments)
    return isinstance(value, kind)


def _check_counts(record: Any, *names: str) -> None:
    for name in names:
        if getattr(record, name) < 0:
            raise ValueError(f"{name} cannot be {getattr(record, name)}")


def kind_of(fingerprint: Mapping[str, Any]) -> str:
    """What kind of job has such a fingerprint, in words."""
    return "a sweep" if "models" in fingerprint else "a scoring job"


@dataclass(frozen=True, kw_only=True)
class JobRecord(_Record):
    """What a generation of an output was asked to hold.

    Attributes:
        fingerprint: Everything that decides the output's content; a run must agree on all of it.
        resolved: What ``auto`` options became; a resumed run takes them over.
        shards: How many shards the dataset was cut into.
        rows: Rows of the dataset before any filter inside row groups.
        model: The model's file name, for people.
        created_s: Unix time.
    """

    fingerprint: Mapping[str, Any]
    resolved: Mapping[str, Any]
    shards: int
    rows: int
    model: str = ""
    created_s: float = field(default_factory=time.time)

    def check(self) -> None:
        """Counts are no less than 0; the size of a shard, where it is settled, is a whole number."""
        _check_counts(self, "shards", "rows")
        size = self.resolved.get("shard_bytes", 0)
        if type(size) is not int:
            raise ValueError(f"shard_bytes cannot be {size!r}"[:80])


@dataclass(frozen=True, kw_only=True)
class CommitRecord(_Record):
    """Which attempt won a shard and what it wrote.

    Attributes:
        shard: The shard's id.
        attempt: The winning attempt's name.
        rows: Rows written.
        bad_rows: Rows quarantined.
        part: Path of the part below the output, None when no row was written.
        part_bytes: Its length.
        sha256: Its digest.
        quarantine: Path of the quarantine file, None without bad rows.
        committed_s: Unix time.
    """

    shard: str
    attempt: str
    rows: int
    bad_rows: int
    part: str | None
    part_bytes: int
    sha256: str | None
    quarantine: str | None
    committed_s: float = field(default_factory=time.time)

    def check(self) -> None:
        """What a commit names lies below the output."""
        _check_counts(self, "rows", "bad_rows", "part_bytes")
        for path in (self.part, self.quarantine):
            if path is not None and not _BELOW.fullmatch(path):
                raise ValueError(f"{path[:80]!r} is no file below the output")
        if (self.part is None) != (self.sha256 is None):
            raise ValueError("part and sha256 go together")


@dataclass(frozen=True, kw_only=True)
class FinalPart:
    """One file of a finished output: its name, rows, length and digest."""

    name: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SuccessRecord(_Record):
    """``_SUCCESS``: the output is complete.

    Attributes:
        generation: Which generation the visible files are of.
        rows: Rows in them.
        bad_rows: Rows in quarantine.
        parts: The files, as dicts of ``FinalPart``.
        seconds: Wall time of the run that finished it.
        finished_s: Unix time.
    """

    generation: str
    rows: int
    bad_rows: int
    parts: list[dict[str, Any]]
    seconds: float = 0.0
    finished_s: float = field(default_factory=time.time)

    def check(self) -> None:
        """Final files have the names that final files get."""
        _check_counts(self, "rows", "bad_rows")
        for part in self.parts:
            if not FINAL.fullmatch(str(part.get("name"))):
                raise ValueError(f"{str(part.get('name'))[:80]!r} is no final file")


@dataclass(frozen=True, kw_only=True)
class RunRecord(_Record):
    """A driver's own account of its run, rewritten every few seconds.

    Attributes:
        run: The run's name.
        state: ``running``, ``finished``, ``failed`` or ``stopped``.
        started_s: Unix time.
        updated_s: Unix time of this account.
        actors: Actors at work.
        shards_done: Shards finished, those of earlier runs included.
        failures: The latest failures as ``{at_s, subject, reason}``.
        error: Why the run failed.
    """

    run: str
    state: str
    started_s: float
    updated_s: float = field(default_factory=time.time)
    actors: int = 0
    shards_done: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def check(self) -> None:
        """A failure says when, what and why."""
        for failure in self.failures:
            is_whole = _fits(failure.get("at_s"), float) and {"subject", "reason"} <= set(failure)
            if not is_whole:
                raise ValueError("a failure lacks at_s, subject or reason")
