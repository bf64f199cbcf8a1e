"""One context of a trial that scores a dataset: the actor of a scoring job as it is, watched from outside."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from dataclasses import replace as changed
from pathlib import Path

import numpy as np

from ...datasets.output import Output
from ...datasets.records import JobRecord
from ...datasets.shards import Shard
from ...datasets.storage import Storage
from ...errors import DatasetError
from ..out_of_memory import OutOfMemoryError
from ..scorer import Scorer
from ..task import FeedTask, ScoreTask
from .context import WarmUp, Window
from .statistics import Steadiness
from .task import Order

__all__ = ["Scoring"]

_SHARDS_IN_FLIGHT = 2
_LOOK_EVERY_S = 0.001
_WINDOW_S, _WINDOW_RUNS = 0.1, 5
_TOLERANCE = 0.1


class Scoring:
    """Scores the rows of an order again and again until it is closed; results go to a folder and are deleted.

    Args:
        order: The trial, with rows.
        number: Of this context among all of the trial; each begins at another place of the dataset.
        folder: On this machine, for results.
    """

    def __init__(self, order: Order, number: int, folder: Path) -> None:
        assert order.rows is not None
        self._order = order
        self._given = order.rows
        self._number = number
        self._storage = Storage(str(folder / f"scored-{number}"))
        self._coming = _turns(order.rows.shards, number, order.contexts * order.actors)
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self._shards = self._rows = self._bad_rows = 0
        self._scorer: Scorer
        self._threads = [
            threading.Thread(target=self._run, name="feeder", daemon=True) for _ in range(_SHARDS_IN_FLIGHT)
        ]

    @property
    def backend(self) -> str:
        """What executes, once it is open."""
        return self._scorer.info.backend

    @property
    def not_taken(self) -> str:
        """Why it is none of the better ones."""
        return self._scorer.info.not_taken

    @property
    def bad_rows(self) -> int:
        """Rows so far that could not be scored."""
        return self._bad_rows

    def open(self) -> float:
        """Loads the engine, building it where the cache has none; returns the seconds it took.

        Raises:
            TrtfleetError: The engine cannot be had.
        """
        start_s, order = time.perf_counter(), self._order
        feeding, shards = self._given.feeding, self._given.shards
        rows = sum(shard.rows for shard in shards)
        record = JobRecord(fingerprint={}, resolved={}, shards=len(shards), rows=rows)
        output = Output.create(self._storage, record)
        told = {one.name: getattr(feeding, one.name) for one in fields(FeedTask)}
        task = ScoreTask(
            **{**told, "threads": max(1, order.threads // order.contexts)},
            output_url=self._storage.url,
            generation=output.generation,
            job=record,
            compression="snappy",
            batch_size=order.batch_size,
            backend=order.backend,
            tensorrt=order.settings,
        )
        self._scorer = Scorer(task)
        return time.perf_counter() - start_s

    def warm_up(self, limit_s: float) -> WarmUp:
        """Begins to score, and waits until rows come at a steady rate, at most for so many seconds."""
        for thread in self._threads:
            thread.start()
        start_s, is_steady, runs, done = time.perf_counter(), False, 0, 0
        # Single batches come in bursts, as shards do: each piece of the time is a window by itself.
        steadiness = Steadiness(tolerance=_TOLERANCE, window_s=0.0, window_runs=1)
        last_s, least = start_s, _WINDOW_RUNS * self._order.batch_size
        for now_s, rows in self._progress():
            runs, done = runs + (rows > 0), done + rows
            if done >= least and now_s - last_s >= _WINDOW_S:
                is_steady = steadiness.add((now_s - last_s) / done)
                last_s, done = now_s, 0
            if runs and (is_steady or now_s - start_s >= limit_s):
                break
        return WarmUp(runs=runs, seconds=time.perf_counter() - start_s, is_steady=is_steady)

    def throughput(self, window: Window) -> np.ndarray:
        """Watches rows being scored.

        Returns:
            float64[2, n]: when batches ended, by this machine's monotonic clock, and their rows.
        """
        measure, start_s = self._order.measure, time.perf_counter()
        ends: list[float] = []
        counts: list[int] = []
        total, least = 0, measure.runs * self._order.batch_size
        for now_s, rows in self._progress():
            if rows:
                ends.append(now_s)
                counts.append(rows)
                total += rows
            enough = total >= least and len(ends) > 1 and now_s - start_s >= measure.seconds
            if not window.goes_on(enough):
                break
        return np.array([ends, counts], np.float64)

    def close(self) -> None:
        """Ends once the shards in flight are done."""
        self._is_over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._scorer.close()

    def _progress(self) -> Iterator[tuple[float, int]]:
        """Looks a thousand times a second; yields the time, and the rows executed since the last look."""
        before = self._scorer.stats.rows
        while True:
            time.sleep(_LOOK_EVERY_S)
            if self._error is not None:
                raise self._error
            rows = self._scorer.stats.rows
            yield time.perf_counter(), rows - before
            before = rows

    def _run(self) -> None:
        try:
            while not self._is_over.is_set():
                with self._lock:
                    turn, shard = next(self._coming)
                self._score(shard, f"{self._number}-{turn}")
        except BaseException as error:
            self._error = self._error or error

    def _score(self, shard: Shard, name: str) -> None:
        # Under an id of its own: what is committed is not committed again.
        receipt = self._scorer.score(changed(shard, id=f"{shard.id}-{name}"), name)
        halved = [note for note in receipt.notes if note.startswith("out of memory")]
        if halved:
            raise OutOfMemoryError(halved[0])
        with self._lock:
            self._shards += 1
            self._rows += receipt.record.rows
            self._bad_rows += receipt.record.bad_rows
            if self._shards >= len(self._given.shards) and not self._rows:
                raise DatasetError(f"none of the dataset's {self._bad_rows:,} rows can be scored")
        written = filter(None, (receipt.record.part, receipt.record.quarantine))
        self._storage.delete(list(written))


def _turns(shards: tuple[Shard, ...], number: int, of: int) -> Iterator[tuple[int, Shard]]:
    """Shards for ever, from one of several evenly spaced places on, counted."""
    first = len(shards) * number // of
    return enumerate(itertools.cycle([*shards[first:], *shards[:first]]))
