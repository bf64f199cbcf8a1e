"""The process that one actor of a trial runs in; a network may crash it, or leave a device in disorder.

Started as ``python -m trtfleet.trt_actors.trial.child FOLDER NUMBER``. The folder holds the pickled order,
the number is that of the actor in its trial. Each line of standard input is what to do next, and each line of
standard output the JSON answer. Arrays and a log are left in the folder.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...datasets.storage import one_line
from ...errors import TrtfleetError
from ..event_log import EventLog
from ..out_of_memory import out_of_memory
from .context import Context, Window
from .scoring import Scoring
from .task import LOG, Order

__all__ = ["main"]

C = TypeVar("C", Context, Scoring)
T = TypeVar("T")

_LOOK_EVERY_S = 0.05


def main() -> None:
    """Does what standard input says until it ends."""
    # Libraries may print; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    folder = Path(sys.argv[1])
    order: Order = pickle.loads((folder / "order.pickle").read_bytes())
    with (
        (folder / LOG).open("w") as sink,
        EventLog(sink, pid=os.getpid()).taking_over(),
        Contexts(order, folder, int(sys.argv[2])) as contexts,
    ):
        for line in sys.stdin:
            answers.write(json.dumps(_answer(contexts, line.strip(), order.batch_size)) + "\n")


def _answer(contexts: Contexts, wanted: str, rows: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = getattr(contexts, wanted)()
    except Exception as error:
        told = out_of_memory(error, rows) or error
        fact = told.fact if isinstance(told, TrtfleetError) else f"{type(told).__name__}: {one_line(told)}"
        return {"error": " ".join(fact.split())}
    return answer


class Contexts:
    """The contexts of one process, each with a thread of its own; a context manager.

    Args:
        order: The trial.
        folder: Where arrays are left.
        number: Of this process in the trial.
    """

    def __init__(self, order: Order, folder: Path, number: int) -> None:
        self._order = order
        self._folder = folder
        self._number = number
        self._contexts: list[Context] = []
        self._scorings: list[Scoring] = []
        self._windows: list[Window] = []
        self._measuring: list[Future[Any]] = []
        self._threads = [ThreadPoolExecutor(1, "context") for _ in range(order.contexts)]

    def __enter__(self) -> Contexts:
        return self

    def __exit__(self, *_: object) -> None:
        for window in self._windows:
            window.end()
        with contextlib.suppress(Exception):
            self._all(Context.close, self._contexts)
        with contextlib.suppress(Exception):
            self._all(Scoring.close, self._scorings)
        for thread in self._threads:
            thread.shutdown()

    def _all(self, work: Callable[[C], T], contexts: Sequence[C]) -> list[T]:
        """Has every context do something at once, each in its own thread."""
        futures: list[Future[T]] = [
            thread.submit(work, context) for thread, context in zip(self._threads, contexts, strict=False)
        ]
        return [future.result() for future in futures]

    def prepare(self) -> dict[str, Any]:
        """Opens and warms up every context for synthetic batches."""
        self._contexts = [Context(self._order) for _ in self._threads]
        return self._open(self._contexts)

    def feed(self) -> dict[str, Any]:
        """Has every context score the dataset from now on, and warms them up on it."""
        self._all(Context.close, self._contexts)
        self._contexts = []
        first = self._number * self._order.contexts
        places = range(first, first + self._order.contexts)
        self._scorings = [Scoring(self._order, place, self._folder) for place in places]
        return self._open(self._scorings)

    def _open(self, contexts: Sequence[C]) -> dict[str, Any]:
        # One after the other, so that the engine is built once; the others take it from the cache.
        load_s = [
            thread.submit(context.open).result()
            for thread, context in zip(self._threads, contexts, strict=True)
        ]
        limit_s = self._order.measure.warm_up_s
        warm = self._all(lambda context: context.warm_up(limit_s), contexts)
        return {
            "executed": contexts[0].backend,
            "not_taken": contexts[0].not_taken,
            "load_s": max(load_s),
            "warm_up_s": max(one.seconds for one in warm),
            "warm_up_runs": sum(one.runs for one in warm),
            "is_steady": all(one.is_steady for one in warm),
        }

    def latency(self) -> dict[str, Any]:
        """Begins to measure latencies; answers once there are enough, and goes on until ``end_latency``."""
        return self._begin(Context.latency, self._contexts)

    def end_latency(self) -> dict[str, Any]:
        """Leaves latencies as rows of end, host and engine seconds."""
        found = self._end()
        parts = [np.stack([one.ends_s, one.host_s, one.engine_s]) for one in found]
        np.save(self._folder / "latency.npy", np.concatenate(parts, axis=1))
        return {}

    def throughput(self) -> dict[str, Any]:
        """Begins to measure throughput; otherwise as ``latency``."""
        if self._scorings:
            return self._begin(Scoring.throughput, self._scorings)
        return self._begin(Context.throughput, self._contexts)

    def end_throughput(self) -> dict[str, Any]:
        """Leaves when batches ended and their rows, an array for each context."""
        np.savez(self._folder / "throughput.npz", *self._end())
        return {"bad_rows": sum(one.bad_rows for one in self._scorings)}

    def _begin(self, work: Callable[[C, Window], Any], contexts: Sequence[C]) -> dict[str, Any]:
        gc.collect()
        gc.disable()
        self._windows = [Window() for _ in contexts]
        self._measuring = [
            thread.submit(work, context, window)
            for thread, context, window in zip(self._threads, contexts, self._windows, strict=True)
        ]
        for window, future in zip(self._windows, self._measuring, strict=True):
            while not window.has_enough.wait(_LOOK_EVERY_S):
                if future.done():
                    future.result()
        return {}

    def _end(self) -> list[Any]:
        for window in self._windows:
            window.end()
        found = [future.result() for future in self._measuring]
        gc.enable()
        return found


if __name__ == "__main__":
    main()
