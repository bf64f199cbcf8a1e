"""Work in a process of its own: a crash, a hang or memory left on the GPU there stays there."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

__all__ = ["ApartError", "each_apart", "limited", "one_line", "run_apart"]

Item = TypeVar("Item")

_LONGEST_ERROR = 400
_VALUE, _ERROR, _END = "value", "error", "end"


class ApartError(Exception):
    """The other process failed, ended early or took too long."""


def run_apart(
    function: Callable[..., Iterator[Any]], *arguments: Any, limit_s: float, each_s: float = math.inf
) -> Iterator[Any]:
    """Yields what a generator function yields in a new process, as it comes.

    The process is fresh (spawned) and is killed when the time is up or when this generator is closed.

    Args:
        function: A generator function at the top of a module.
        arguments: What to call it with; they and what it yields must pickle.
        limit_s: Seconds for everything, the process's start included.
        each_s: Seconds for one value.

    Raises:
        ApartError: It raised, ended early or took longer; everything it yielded before has been handed out.
    """
    end_s = time.monotonic() + limit_s
    spawning = multiprocessing.get_context("spawn")
    here, there = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_serve, args=(there, function, arguments), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            patience_s = max(0.0, min(each_s, end_s - time.monotonic()))
            if not here.poll(patience_s):
                raise ApartError(f"stopped after {patience_s:.1f} s")
            try:
                kind, value = here.recv()
            except EOFError:
                process.join()
                raise ApartError(f"the process ended with exit code {process.exitcode}") from None
            if kind == _END:
                return
            if kind == _ERROR:
                raise ApartError(value)
            yield value
    finally:
        here.close()
        process.join(5 if process.exitcode is None and time.monotonic() < end_s else 0)
        if process.is_alive():
            process.kill()
            process.join()


def each_apart(
    function: Callable[..., Iterator[Any]],
    items: Sequence[Item],
    *arguments: Any,
    limit_s: float,
    each_s: float = math.inf,
) -> Iterator[tuple[Item, Any, str]]:
    """Runs ``function(items, *arguments)``, which yields one value an item, and survives items that break it.

    After an item that raises, hangs or kills the process, a new process goes on with those behind it.

    Args:
        function: See ``run_apart``.
        items: What to hand over, one value each.
        arguments: What else.
        limit_s: Seconds for all of them; those left then get no value.
        each_s: Seconds for one of them.

    Yields:
        Every item with its value and an empty text, or with None and why there is no value.
    """
    end_s = time.monotonic() + limit_s
    left = list(items)
    while left:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            yield left.pop(0), None, "no time left"
            continue
        try:
            for value in run_apart(function, left, *arguments, limit_s=left_s, each_s=each_s):
                yield left.pop(0), value, ""
        except ApartError as error:
            if left:
                yield left.pop(0), None, str(error)
        else:
            if left:
                raise RuntimeError(f"{function.__name__} left out {len(left)} items")


@contextlib.contextmanager
def limited(limit_s: float) -> Iterator[None]:
    """Raises TimeoutError in the block when it takes longer; for the main thread only."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not finished after {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(limit_s, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: BaseException) -> str:
    """An exception as one line of bounded length."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."


def _serve(connection: Connection, function: Callable[..., Iterator[Any]], arguments: Sequence[Any]) -> None:
    try:
        for value in function(*arguments):
            connection.send((_VALUE, value))
        connection.send((_END, None))
    except BaseException as error:
        connection.send((_ERROR, one_line(error)))
