"""The commands of a soak: one scoring job at a time, by one driver or two."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Drivers"]

# A run may spend its budget of nodes, of starts or of deaths; the same command goes on.
_GIVES_UP = (9, 10, 14)
_DRIVER = "from trtfleet.jobs.cli import main; main()"


class Drivers:
    """Processes of the same command.

    Args:
        folder: Where they work, and log.
        environment: Theirs.
        say: Told when one gives up.

    Attributes:
        is_done: Whether one has ended well since ``begin``.
        gave_up: How many ended with an exit code that says that the same command goes on later.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._folder, self._environment, self._say = folder, environment, say
        self._command: list[str] = []
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._started = 0
        self.is_done = False
        self.gave_up = 0

    def __len__(self) -> int:
        """How many are running."""
        return len(self._running)

    def begin(self, arguments: Sequence[str]) -> None:
        """Starts one with arguments of ``trtfleet``, which are those of all until the next call."""
        self._command = [sys.executable, "-c", _DRIVER, *arguments]
        self.is_done = False
        self.start()

    def start(self) -> None:
        """Starts another one."""
        self._started += 1
        path = self._folder / f"driver-{self._started}.log"
        with path.open("wb") as log:
            driver = subprocess.Popen(
                self._command, cwd=self._folder, env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._running.append((driver, path))

    def run_to_its_end(self, arguments: Sequence[str]) -> Any:
        """Runs a command that must succeed; returns what it prints, which must be JSON."""
        command = [sys.executable, "-c", _DRIVER, *arguments]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def collect(self) -> None:
        """Takes note of those that ended by themselves; if the last one gave up, starts another.

        Raises:
            AssertionError: One ended as it should not.
        """
        for driver, log in [entry for entry in self._running if entry[0].poll() is not None]:
            self._forget(driver, log, is_expected=driver.returncode in (0, *_GIVES_UP))
            self.is_done |= driver.returncode == 0
            if driver.returncode:
                self.gave_up += 1
                self._say(f"a command gave up with {driver.returncode}")
                if not self._running and not self.is_done:
                    self.start()

    def kill_one(self, rng: random.Random) -> None:
        """Kills one with SIGKILL."""
        driver, log = rng.choice(self._running)
        driver.kill()
        driver.wait()
        self._forget(driver, log)

    def close(self) -> None:
        """Ends all that are left."""
        for driver, log in list(self._running):
            driver.kill()
            driver.wait()
            self._forget(driver, log)

    def _forget(self, driver: subprocess.Popen[bytes], log: Path, *, is_expected: bool = True) -> None:
        self._running.remove((driver, log))
        assert is_expected, f"a command ended with {driver.returncode}:\n{log.read_text()[-8000:]}"
        log.unlink()
