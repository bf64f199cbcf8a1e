"""Seconds of the stages of an actor's work, summed over its threads and traced on the way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from .trace import Tracer

__all__ = ["Stage", "StageStats", "Stages"]


class Stage(StrEnum):
    """The stages of a row's way whose seconds are summed up; the value names the span."""

    READ = "read"
    DECODE = "decode"
    STAGE = "stage"
    CONVERT = "convert"
    WRITE = "write"
    COMMIT = "commit"


_CATEGORIES = {
    Stage.READ: "reading",
    Stage.DECODE: "reading",
    Stage.STAGE: "reading",
    Stage.CONVERT: "writing",
    Stage.WRITE: "writing",
    Stage.COMMIT: "writing",
}


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """Seconds spent in the stages around the engine, summed over threads; they may exceed the wall time.

    Attributes:
        read_s: Fetching and decompressing row groups, waiting for storage included.
        read_cpu_s: Of these, on a core.
        read_bytes: What came out of it, in Arrow memory.
        decode_s: Making tensors of columns.
        stage_s: Copying tensors into the engine's slots, not waiting for one.
        convert_s: Making columns of outputs.
        write_s: Encoding and writing them.
        commit_s: Completing a shard's part, and committing it.
    """

    read_s: float = 0.0
    read_cpu_s: float = 0.0
    read_bytes: int = 0
    decode_s: float = 0.0
    stage_s: float = 0.0
    convert_s: float = 0.0
    write_s: float = 0.0
    commit_s: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[StageStats]) -> StageStats:
        """The sums over several actors."""
        kept = list(parts)
        return cls(**{f.name: sum(getattr(part, f.name) for part in kept) for f in fields(cls)})


class Stages:
    """Sums up the stages of one actor, and traces each.

    Args:
        tracer: Gets a span for every measurement.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._read_cpu_s = 0.0
        self._read_bytes = 0

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[dict[str, Any]]:
        """Measures the block; a failed one counts too.

        Args:
            stage: A ``Stage``, or its value, so that layers below need not know the type.

        Yields:
            The span's details; ``bytes`` of the stage ``read`` are summed up.
        """
        stage = Stage(stage)
        # Reading alone tells waiting from working: the clock of a thread takes the kernel a microsecond.
        is_read = stage is Stage.READ
        start_s, start_cpu_s = time.perf_counter(), time.thread_time() if is_read else 0.0
        details: dict[str, Any] = {}
        try:
            with self._tracer.span(stage, _CATEGORIES[stage]) as details:
                yield details
        finally:
            spent_s = time.perf_counter() - start_s
            cpu_s = time.thread_time() - start_cpu_s if is_read else 0.0
            with self._lock:
                self._seconds[stage] += spent_s
                if is_read:
                    self._read_cpu_s += cpu_s
                    self._read_bytes += details.get("bytes", 0)

    @property
    def stats(self) -> StageStats:
        """The sums so far."""
        with self._lock:
            return StageStats(
                read_cpu_s=self._read_cpu_s,
                read_bytes=self._read_bytes,
                **{f"{stage}_s": seconds for stage, seconds in self._seconds.items()},
            )
