"""What every workload of the GPU benchmark works with: sizes, folders, the time left, and the results."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_engine import Variant
from gpu_isolate import limited, one_line
from gpu_scale import Scale

__all__ = ["Bench"]

WINDOW_S = 0.5
QUICK_WINDOW_S = 0.05


@dataclass(kw_only=True)
class Bench:
    """One run of the benchmark.

    Attributes:
        scale: Sizes.
        work: Keeps networks and datasets between runs.
        json: Where results go, after every single measurement.
        end_s: When everything must be finished, by ``time.monotonic``.
        is_quick: Whether short measurements must do.
        session: How the engine alone, Ray Data and the plain loop set up their sessions.
        score_options: What else ``trtfleet.score`` is given.
        answers: The best classes of the raw images, once somebody has found them; others must agree.
        results: What was measured.
    """

    scale: Scale
    work: Path
    json: Path
    end_s: float
    is_quick: bool = False
    session: Variant = field(default_factory=lambda: Variant(name="default"))
    score_options: dict[str, Any] = field(default_factory=dict)
    answers: Any = None
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        """Whether networks run on one."""
        return self.scale.device == "cuda"

    @property
    def backend(self) -> str:
        """What ``trtfleet.score`` is told to run."""
        return f"onnxruntime-{self.scale.device}"

    @property
    def window_s(self) -> float:
        """How long a window of an engine's rate lasts."""
        return QUICK_WINDOW_S if self.is_quick else WINDOW_S

    def left_s(self, most_s: float) -> float:
        """The time that is left, at most ``most_s``."""
        return max(0.0, min(most_s, self.end_s - time.monotonic()))

    def measure(self, rows: list[dict[str, Any]], name: str, limit_s: float, run: Callable[[], Any]) -> Any:
        """Runs a measurement in this process and keeps it as a row, or why there is none.

        Args:
            rows: Gets ``{"name": name, **result}``, or ``{"name": name, "error": why}``.
            name: Of the row.
            limit_s: After which it is given up.
            run: Returns the row's facts.

        Returns:
            The row, or None when it failed.
        """
        limit_s = self.left_s(limit_s)
        try:
            if limit_s < 1:
                raise TimeoutError("no time left")
            with limited(limit_s):
                row = {"name": name, **run()}
        except Exception as error:
            rows.append({"name": name, "error": one_line(error)})
        else:
            rows.append(row)
        self.keep()
        self.say(f"{name}: {_told(rows[-1])}")
        return rows[-1] if "error" not in rows[-1] else None

    def add(
        self, rows: list[dict[str, Any]], name: str, facts: dict[str, Any] | None, error: str = ""
    ) -> None:
        """Keeps a row that was measured elsewhere."""
        rows.append({"name": name, "error": error} if facts is None else {"name": name, **facts})
        self.keep()
        self.say(f"{name}: {_told(rows[-1])}")

    def keep(self) -> None:
        """Writes the results; the file is whole at any time."""
        self.json.parent.mkdir(parents=True, exist_ok=True)
        draft = self.json.with_name(f"{self.json.name}.{os.getpid()}.draft")
        draft.write_text(json.dumps(self.results, indent=1, default=str) + "\n")
        draft.replace(self.json)

    def say(self, text: str) -> None:
        """Tells the user where the run is."""
        print(f"[{self.left_s(1e9):4.0f} s left] {text}", file=sys.stderr, flush=True)


def _told(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    if "rows_per_s" in row:
        return f"{row['rows_per_s']:,.0f} rows/s"
    return "done"
