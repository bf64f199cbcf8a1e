"""What a job does to its machine: busy cores, and the memory of the processes that score.

Read from ``/proc`` ten times a second. An actor's resident memory counts the pages of libraries it has
touched; page-locked buffers that a GPU driver maps may be missing in it, so the drop of the machine's
available memory, which misses nothing and counts the object store of Ray too, is kept beside it.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

__all__ = ["Watch"]

ACTOR = b"ray::ScoreActor"
_EVERY_S = 0.1
_SEARCH_EVERY = 2
_PROC = Path("/proc")
_PARTS = {"VmHWM": "resident", "RssAnon": "anonymous", "RssFile": "files", "RssShmem": "shared"}


@dataclass(frozen=True, kw_only=True)
class _Sample:
    at_s: float
    busy_ticks: int
    all_ticks: int
    available_bytes: int


class Watch:
    """Watches this machine in a thread, as a context manager.

    Args:
        title: What the command line of the processes to watch begins with.
    """

    def __init__(self, title: bytes = ACTOR) -> None:
        self._title = title
        self._samples: list[_Sample] = []
        self._peaks: dict[int, dict[str, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._samples.append(_sample())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._samples.append(_sample())

    def cores_busy(self, start_s: float, end_s: float) -> float | None:
        """Median share, 0 to 1, of the machine's cores that worked between two monotonic times."""
        inside = [sample for sample in self._samples if start_s <= sample.at_s <= end_s]
        shares = [
            (after.busy_ticks - before.busy_ticks) / (after.all_ticks - before.all_ticks)
            for before, after in pairwise(inside)
            if after.all_ticks > before.all_ticks
        ]
        return statistics.median(shares) if shares else None

    def memory(self) -> dict[str, Any]:
        """Peaks in bytes: of the largest process watched, its parts, and what the machine had less."""
        largest = max(self._peaks.values(), key=lambda peak: peak.get("resident", 0), default={})
        available = [sample.available_bytes for sample in self._samples]
        return {
            "processes": len(self._peaks),
            **{f"{part}_bytes": largest.get(part) for part in _PARTS.values()},
            "machine_drop_bytes": available[0] - min(available),
        }

    def _run(self) -> None:
        pids: list[int] = []
        turn = 0
        while not self._stop.wait(_EVERY_S):
            if turn % _SEARCH_EVERY == 0:
                pids = _processes(self._title)
            turn += 1
            for pid in pids:
                peak = self._peaks.setdefault(pid, {})
                for part, size in _memory_of(pid).items():
                    peak[part] = max(size, peak.get(part, 0))
            self._samples.append(_sample())


def _sample() -> _Sample:
    ticks = [int(part) for part in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    # Waiting for a disk is no work.
    idle = ticks[3] + ticks[4]
    available = next(
        int(line.split()[1]) << 10
        for line in (_PROC / "meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    return _Sample(
        at_s=time.monotonic(),
        busy_ticks=sum(ticks) - idle,
        all_ticks=sum(ticks),
        available_bytes=available,
    )


def _processes(title: bytes) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir(_PROC)):
        try:
            if (_PROC / name / "cmdline").read_bytes().startswith(title):
                found.append(int(name))
        except OSError:
            continue
    return found


def _memory_of(pid: int) -> dict[str, int]:
    """Nothing for a process that is gone."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {_PARTS[f[0][:-1]]: int(f[1]) << 10 for f in fields if f and f[0][:-1] in _PARTS}
