"""A child process for hostile inputs, restarted when one kills it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

__all__ = ["DEADLINE_S", "Sandbox", "Verdict"]

DEADLINE_S = 30.0
"""Time that an input may take, on any machine; the memory is in ``child.MEMORY_BYTES``."""

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an input ended.

    Attributes:
        ended: ``accepted``, ``refused`` (with an error of trtfleet), ``defect`` (any other) or ``killed``.
        fact: The error, a traceback or the signal.
    """

    ended: str
    fact: str

    @property
    def is_fine(self) -> bool:
        """Whether nothing happened that must not."""
        return self.ended in ("accepted", "refused")


class Sandbox:
    """Runs targets on inputs, one after the other, in one child as long as it lives."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Any = None

    def run(self, target: str, data: bytes) -> Verdict:
        """Feeds bytes to a target."""
        child = self._living()
        assert child.stdin is not None
        assert child.stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(f"{target} {len(data)}\n".encode() + data)
            child.stdin.flush()
            line = child.stdout.readline()
        if line:
            answer = json.loads(line)
            return Verdict(ended=answer["ended"], fact=answer["fact"])
        code = child.wait()
        self._log.seek(0)
        said = self._log.read()[-2000:].decode(errors="replace")
        self.close()
        ended = "took too long" if code == -signal.SIGALRM else f"ended with {code}"
        return Verdict(ended="killed", fact=f"the process {ended}: {said}")

    def _living(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            self._log = TemporaryFile()  # noqa: SIM115
            command = [sys.executable, str(_CHILD), str(DEADLINE_S)]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        return self._child

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            self._child.kill()
            self._child.wait()
            self._child = None
            self._log.close()
