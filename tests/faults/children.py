"""Processes that run one protocol once and may die at one step, forked from one that has everything imported.

That one reads orders as lines of JSON and answers each with how the child ended that carried it out. It never
touches storage itself, whose libraries have threads that do not survive a fork.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from trtfleet.tests.faults import clock
from trtfleet.tests.faults.crashing_store import Crash, Step, Steps, watched
from trtfleet.tests.faults.protocols import PROTOCOLS

__all__ = ["Order", "Outcome", "Parent", "serve"]

_PARENT = """
from trtfleet.tests.faults import clock
clock.install()
from trtfleet.tests.faults.children import serve
serve()
"""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a child is to do.

    Attributes:
        protocol: By name.
        assets: Its assets.
        place: Where it runs.
        crash: (step, when) to end at; None for the end.
        environment: Set in the child.
        skew_s: How wrong its clock is.
        jitter: Seed of pauses of some milliseconds before steps; None for no pauses.
        told: A file to which it appends a line for each step and each build.
    """

    protocol: str
    assets: str
    place: str
    crash: tuple[int, str] | None = None
    environment: dict[str, str] | None = None
    skew_s: float = 0.0
    jitter: int | None = None
    told: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a child ended: its exit status, and what it wrote to standard error."""

    status: int
    stderr: str


class Parent:
    """A process that forks children on order, one after the other; a context manager."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, order: Order) -> Outcome:
        """Has an order carried out, to its end or the child's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def _carry_out(order: Order) -> None:
    clock.set_wrong(order.skew_s)
    os.environ.update(order.environment or {})
    crash = Crash(number=order.crash[0], when=order.crash[1]) if order.crash else None  # type: ignore[arg-type]
    pauses = None if order.jitter is None else random.Random(order.jitter)

    def tell(kind: str, **values: Any) -> None:
        if order.told is not None:
            handle = os.open(order.told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, (json.dumps({"kind": kind, **values}) + "\n").encode())
            os.close(handle)

    def before(step: Step) -> None:
        if crash is not None:
            crash.before(step)
        if pauses is not None:
            time.sleep(pauses.random() * 0.004)

    def after(step: Step) -> None:
        tell("step", name=step.name, path=step.path, can_tear=step.can_tear)
        if crash is not None:
            crash.after(step)

    protocol = PROTOCOLS[order.protocol](Path(order.assets))
    with watched(Steps(order.place, before, after)):
        protocol.run(order.place, lambda: tell("build"))


def _fork(order: Order) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        os.dup2(writing, 2)
        # Answers go through standard output: a child must not write there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            _carry_out(order)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as errors:
        stderr = errors.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Outcome(status=status, stderr=stderr)


def serve() -> None:
    """Carries out the orders of standard input, one a line."""
    # pyarrow imports pandas, where it is installed, with the first array it is given: once is enough.
    pa.array(np.zeros(1))
    # A collection in a child would touch, and so copy, all that was ever imported.
    gc.freeze()
    for line in sys.stdin:
        values = json.loads(line)
        if values["crash"] is not None:
            values["crash"] = tuple(values["crash"])
        print(json.dumps(asdict(_fork(Order(**values)))), flush=True)
