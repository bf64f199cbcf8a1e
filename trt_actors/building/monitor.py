"""How far a build is: TensorRT's progress monitor, as a share and a phase."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Progress", "make_monitor"]

Progress = Callable[[str, float], bool]
"""Gets the innermost phase's name and the share of the outermost phase that is done, 0 to 1, from any thread;
returns whether the build may go on."""


def make_monitor(api: Any, progress: Progress | None) -> Any:
    """A monitor of a flavour's own ``IProgressMonitor`` type, with ``end()`` and ``is_ended``."""

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()
            self._steps: dict[str, tuple[int, int]] = {}
            self.is_ended = False

        def end(self) -> None:
            self.is_ended = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase_name] = (0, max(1, num_steps))
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                _, steps = self._steps.get(phase_name, (0, 1))
                self._steps[phase_name] = (step + 1, steps)
            self._tell(phase_name)
            return not self.is_ended

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._steps.pop(phase_name, None)

        def _tell(self, phase: str) -> None:
            with self._lock:
                done, steps = next(iter(self._steps.values()), (0, 1))
            # An exception must not pass through native code.
            try:
                if progress is not None and not progress(phase, min(1.0, done / steps)):
                    self.is_ended = True
            except BaseException:
                self.is_ended = True

    return Monitor()
