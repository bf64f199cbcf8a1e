"""A watch over an actor's own process: steps that never end, and memory that only grows.

Python cannot end a thread that hangs in a user's hook, in a driver or in a library. So the calls that wait
for its work are ended instead, with an error that tells the job to replace the whole process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from ..errors import ActorSpentError, ActorStuckError, BackendError, TrtfleetError

__all__ = ["ENGINE", "Watchdog", "private_memory_bytes"]

ENGINE = "the engine"
"""What is named where the execution of a batch does not end."""

T = TypeVar("T")

_LONGEST_LOOK_S = 1.0
_LONGEST_GRACE_S = 30.0
_STDERR = 2
_STATM = "/proc/self/statm"


def private_memory_bytes() -> int:
    """Memory in use by this process alone: resident and not shared with others, by the kernel's account."""
    with open(_STATM) as statm:
        _, resident, shared = map(int, statm.read().split()[:3])
    return (resident - shared) * mmap.PAGESIZE


class Watchdog:
    """Watches the steps of an actor's threads and the memory of its process.

    Args:
        limit_s: Seconds that one step may take; infinity for any time.
        memory_bytes: What the process may use, see ``private_memory_bytes``; None for any amount.
        ends_process: Whether a process whose interpreter itself hangs, because something never gives Python's
            lock back, is ended without further ado: with the stacks of all threads on standard error.

    Raises:
        BackendError: Memory is limited on a system that does not tell what a process uses.
    """

    def __init__(
        self, limit_s: float = float("inf"), memory_bytes: int | None = None, *, ends_process: bool = False
    ) -> None:
        if memory_bytes is not None and not os.path.exists(_STATM):
            raise BackendError("memory_per_actor needs Linux", "leave --memory-per-actor out")
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._ends_process = ends_process and limit_s < float("inf")
        # A thread does one step at a time, and touches its own entry only.
        self._steps: dict[int, tuple[str, float]] = {}
        self._closed = threading.Event()
        self._verdict: Future[None] = Future()
        self._thread: threading.Thread | None = None
        if limit_s < float("inf") or memory_bytes is not None:
            self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends the watch."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Watches the block.

        Args:
            what: What takes so long if it does, ``the engine`` for example.
        """
        me = threading.get_ident()
        self._steps[me] = (what, time.monotonic())
        try:
            yield
        finally:
            del self._steps[me]

    def run(self, work: Callable[[], T]) -> T:
        """Does something in a thread of its own, and no longer waits for it once the process is given up.

        Raises:
            ActorStuckError: A step of any thread took too long.
            ActorSpentError: The process has more memory than it may.
            Exception: Whatever ``work`` raised.
        """
        done: Future[T] = Future()

        def carry_out() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=carry_out, name="feeder", daemon=True).start()
        ends: list[Future[Any]] = [done, self._verdict]
        wait(ends, return_when=FIRST_COMPLETED)
        if not done.done():
            self._verdict.result()
        return done.result()

    def _look(self) -> None:
        look_s = min(_LONGEST_LOOK_S, self._limit_s / 4)
        self._wind_up()
        while not self._closed.wait(look_s):
            self._wind_up()
            verdict = self._stuck() or self._spent()
            if verdict is not None:
                self._verdict.set_exception(verdict)
                return
        if self._ends_process:
            faulthandler.cancel_dump_traceback_later()

    def _wind_up(self) -> None:
        """Sets the timer anew that ends the process; no Python thread, it runs out when nobody does so."""
        if self._ends_process:
            last_s = self._limit_s + min(self._limit_s, _LONGEST_GRACE_S)
            faulthandler.dump_traceback_later(last_s, exit=True, file=_STDERR)

    def _stuck(self) -> TrtfleetError | None:
        now_s = time.monotonic()
        for what, since_s in list(self._steps.values()):
            if now_s - since_s > self._limit_s:
                return ActorStuckError(
                    f"{what} took more than {self._limit_s:g} s for one batch",
                    "raise --batch-timeout if that is no hang",
                )
        return None

    def _spent(self) -> TrtfleetError | None:
        if self._memory_bytes is None:
            return None
        used_bytes = private_memory_bytes()
        if used_bytes <= self._memory_bytes:
            return None
        return ActorSpentError(
            f"the actor's process came to use {used_bytes:,} bytes of memory, {self._memory_bytes:,} allowed",
            "does a hook keep what it was given? otherwise raise --memory-per-actor",
        )
