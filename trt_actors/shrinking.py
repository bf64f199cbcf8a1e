"""A pipeline whose batches become smaller when memory runs out, and attempts that are repeated with it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .engine import Engine
from .execute import BatchFailedError
from .out_of_memory import OutOfMemoryError, free_slots
from .pipeline import Pipeline
from .pipeline_stats import PipelineStats
from .trace import Tracer
from .watchdog import Watchdog

__all__ = ["ShrinkingPipeline", "Turn"]

T = TypeVar("T")

_SIZES_TOLD = 10


@dataclass(frozen=True, eq=False)
class Turn:
    """One attempt's use of a pipeline.

    Attributes:
        pipeline: Through which its batches go.
        batch_size: Rows of a full one.
        is_single: Whether each row is executed alone, so that it is to blame when memory runs out.
    """

    pipeline: Pipeline
    batch_size: int
    is_single: bool


class ShrinkingPipeline:
    """Hands out one pipeline at a time to the attempts of several threads.

    Slots keep the memory of their largest batch, so smaller batches get a new pipeline. An engine is used by
    one thread, so that is made when the last attempt has left the old one; attempts that come meanwhile wait.

    Args:
        engine: Open; stays the caller's to close, after ``close``.
        slots: Batches that may exist at once.
        batch_size: Rows of a full batch, to begin with.
        tracer: Told of executions, waits and free slots.
        watchdog: Watches executions.
    """

    def __init__(
        self, engine: Engine, slots: int, batch_size: int, tracer: Tracer, watchdog: Watchdog | None = None
    ) -> None:
        self._engine = engine
        self._watchdog = watchdog
        self._slots = slots
        self._tracer = tracer
        # Such an engine fills every batch up, whatever its rows.
        self._is_fixed = (engine.inputs[0].batch or 1) > 1
        self._changed = threading.Condition()
        self._users = 0
        self._is_changing = False
        self._broken: BaseException | None = None
        self._before = PipelineStats()
        self._sizes: list[int] = []
        self._turn = self._made(batch_size)

    @property
    def batch_size(self) -> int:
        """Rows of a full batch now."""
        return self._turn.batch_size

    @property
    def stats(self) -> PipelineStats:
        """The account so far, of all pipelines together; making one counts as measuring."""
        with self._changed:
            return self._before.followed_by(self._turn.pipeline.stats)

    @property
    def notes(self) -> tuple[str, ...]:
        """What became of the batch size, in one sentence; none as long as memory sufficed."""
        if len(self._sizes) == 1:
            return ()
        told = [f"{size:,}" for size in self._sizes]
        if len(told) > _SIZES_TOLD:
            told = [*told[: _SIZES_TOLD - 1], "...", told[-1]]
        return (f"out of memory: batch size {' -> '.join(told)}",)

    def run(self, rows: int, attempt: Callable[[Turn, bool], tuple[T, int]]) -> T:
        """Attempts a shard until it is done: carefully once a batch failed, with smaller ones without memory.

        Args:
            rows: Of the shard.
            attempt: Makes one attempt, given its turn and whether to do so carefully; leaves nothing on the
                pipeline. Returns its result, and how many rows took more memory than there is, each alone.

        Raises:
            OutOfMemoryError: Memory ran out, and smaller batches would not help.
            TrtfleetError: The attempt raised it.
        """
        careful = False
        while True:
            with self._use(rows) as turn:
                try:
                    done, too_large = attempt(turn, careful)
                    break
                except BatchFailedError:
                    # Some row breaks the engine or a hook: once more, slowly, to find out which.
                    careful = True
                    continue
                except OutOfMemoryError as error:
                    ran_out = error
            if not self._replace(turn, turn.batch_size // 2):
                if careful:
                    raise ran_out
                careful = True
        if too_large:
            # Batches are so small because of single rows, which tell nothing about all others.
            self._replace(turn, self._sizes[0])
        return done

    def close(self) -> None:
        """Ends the pipeline once everything submitted has been delivered."""
        self._turn.pipeline.close()

    def _made(self, batch_size: int) -> Turn:
        """A pipeline for a batch size, or for the next smaller one whose slots there is memory for.

        When there is none for all slots of the smallest batches, fewer slots have to do.
        """
        self._sizes.append(batch_size)
        slots = self._slots
        while True:
            self._engine.full_rows = batch_size
            try:
                pipeline = Pipeline(self._engine, slots, batch_size, self._tracer, self._watchdog)
            except OutOfMemoryError:
                free_slots(self._engine)
                if batch_size > 1 and not self._is_fixed:
                    batch_size //= 2
                    self._sizes.append(batch_size)
                    continue
                if slots > 1:
                    slots //= 2
                    continue
                # The first batch will tell.
                pipeline = Pipeline(self._engine, slots, None, self._tracer, self._watchdog)
            return Turn(pipeline, batch_size, is_single=batch_size == 1 and not self._is_fixed)

    @contextlib.contextmanager
    def _use(self, rows: int) -> Iterator[Turn]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_changing)
            if self._broken is not None:
                raise self._broken
            self._users += 1
            turn = self._turn
        turn.pipeline.begin(min(turn.batch_size, rows))
        try:
            yield turn
        finally:
            turn.pipeline.end()
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _replace(self, seen: Turn, batch_size: int) -> bool:
        """Makes a pipeline for another batch size, unless somebody replaced the one seen already.

        Returns:
            Whether there is another one now.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._is_changing)
            if self._turn is not seen or self._broken is not None:
                return True
            if batch_size < 1 or batch_size == seen.batch_size or self._is_fixed:
                return False
            self._is_changing = True
            self._changed.wait_for(lambda: not self._users)
        start_s = time.perf_counter()
        try:
            seen.pipeline.close()
            free_slots(self._engine)
            made = self._made(batch_size)
        except BaseException as error:
            with self._changed:
                self._broken, self._is_changing = error, False
                self._changed.notify_all()
            raise
        with self._changed:
            making = PipelineStats(measuring_s=time.perf_counter() - start_s)
            self._before = self._before.followed_by(seen.pipeline.stats).followed_by(making)
            self._turn, self._is_changing = made, False
            self._changed.notify_all()
        return True
