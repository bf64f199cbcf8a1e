"""A process of a trial, seen from the one that started it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from ..event_log import EventLog, NullLog
from .task import LOG, Order

__all__ = ["VISIBLE", "TrialFailed", "TrialProcess"]

VISIBLE = "CUDA_VISIBLE_DEVICES"

_CHILD = "trtfleet.trt_actors.trial.child"


class TrialFailed(Exception):  # noqa: N818
    """A trial came to nothing, for the reason given."""


class TrialProcess:
    """One process of a trial; a context manager that ends it.

    Args:
        order: The trial.
        number: Of this process in it.
        device: The GPU that it sees, as in ``CUDA_VISIBLE_DEVICES``; empty for none.
        log: Gets what it logs, once it has ended; None for nobody.

    Attributes:
        folder: Where it leaves arrays; deleted in the end.
    """

    def __init__(self, order: Order, number: int, device: str, log: EventLog | None) -> None:
        self._order = order
        self._number = number
        self._device = device
        self._log = log or NullLog()
        self._temporary = tempfile.TemporaryDirectory(prefix="trtfleet-trial-")
        self.folder = Path(self._temporary.name)

    def __enter__(self) -> Self:
        (self.folder / "order.pickle").write_bytes(pickle.dumps(self._order))
        self._errors = (self.folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", _CHILD, str(self.folder), str(self._number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, VISIBLE: self._device},
        )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._log.is_on:
            self._tell_log()
        self._temporary.cleanup()

    def _tell_log(self) -> None:
        """Tells what it logged: only now, since it has no other way out than its folder."""
        with contextlib.suppress(OSError):
            for line in (self.folder / LOG).read_text(errors="replace").splitlines():
                # The last line of a process that was killed may be cut off.
                with contextlib.suppress(ValueError):
                    told = json.loads(line)
                    self._log.tell(told.pop("event"), told.pop("message", ""), **told)

    def send(self, what: str) -> None:
        """Tells it what to do; a process that is gone is noticed by ``receive``."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{what}\n".encode())
            self._process.stdin.flush()

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """Its answer.

        Raises:
            TrialFailed: The trial failed there, the process is gone, or the time is over.
        """
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise TrialFailed(f"it took more than {self._order.measure.timeout_s:g} s")
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise TrialFailed(self._end())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise TrialFailed(answer["error"])
        return answer

    def _end(self) -> str:
        code = self._process.wait()
        said = (self.folder / "stderr").read_bytes().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = " ".join(said[-1].split())[:300] if said else ""
        return f"its process ended with {how}" + (f": {last}" if last else "")
