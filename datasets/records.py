"""The JSON records an output keeps of its job: what was asked, which attempts won, how runs went."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ..errors import OutputError

__all__ = ["FORMAT", "CommitRecord", "FinalPart", "JobRecord", "RunRecord", "SuccessRecord"]

FORMAT = 1
"""Version of the output layout; a record of a higher one is refused."""


class _Record:
    """Reads and writes a dataclass as JSON; unknown fields of the same format are ignored."""

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
            known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
            if version == FORMAT:
                return cls(**{key: value for key, value in values.items() if key in known})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise OutputError(f"{name} is damaged: {error}", "it was not written by trtfleet") from error
        raise OutputError(
            f"{name} has format {version}, this trtfleet reads format {FORMAT}", "upgrade trtfleet"
        )


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
