"""The results of a sweep in the form models by batch sizes, held against a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .grid import Trial
from .results import Row

__all__ = ["Cell", "Grid", "grids", "setting", "speed_ups", "tables"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model at one batch size.

    Attributes:
        text: Milliseconds a batch, or rows per second; empty where that was not tried.
        speed_up: How many times faster than the baseline; None where that is not known.
        is_failed: Whether the trial came to nothing.
    """

    text: str = ""
    speed_up: float | None = None
    is_failed: bool = False

    def __str__(self) -> str:
        return self.text + (f" (x{self.speed_up:.2f})" if self.speed_up else "")


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The times of one setting on one kind of device.

    Attributes:
        setting: The setting in words.
        unit: What the numbers are.
        sizes: Batch sizes, the columns.
        lines: A model's name and its cells.
    """

    setting: str
    unit: str
    sizes: tuple[int, ...]
    lines: tuple[tuple[str, tuple[Cell, ...]], ...]


def grids(rows: Sequence[Row], baseline: str | None = None) -> Iterator[Grid]:
    """Milliseconds a batch, or rows per second where there are none, of every setting with a result.

    Args:
        rows: Of a sweep.
        baseline: The backend whose times others are held against.
    """
    groups: dict[Trial, list[Row]] = {}
    for row in rows:
        groups.setdefault(replace(row.trial, model="", batch_size=0), []).append(row)
    ratios = speed_ups(rows, baseline)
    for key, members in groups.items():
        if all(row.found.error is not None for row in members):
            continue
        is_latency = any(row.found.host_p50_ms is not None for row in members)
        sizes = tuple(sorted({row.trial.batch_size for row in members}))
        lines = []
        for model in dict.fromkeys(row.trial.model for row in members):
            cells = {row.trial.batch_size: _cell(row, ratios) for row in members if row.trial.model == model}
            lines.append((model, tuple(cells.get(size, Cell()) for size in sizes)))
        yield Grid(
            setting=setting(key),
            unit="median ms a batch, host to host" if is_latency else "rows per second",
            sizes=sizes,
            lines=tuple(lines),
        )


def _cell(row: Row, ratios: dict[Trial, float]) -> Cell:
    found = row.found
    if found.error is not None:
        return Cell(text="failed", is_failed=True)
    if found.host_p50_ms is None:
        return Cell(text=f"{found.rows_per_s or 0:,.0f}")
    return Cell(text=f"{found.host_p50_ms:.3f}", speed_up=ratios.get(row.trial))


def setting(trial: Trial) -> str:
    """What a trial has in common with those of other models and batch sizes, in words."""
    parts = [trial.device, trial.precision, trial.backend]
    parts += [f"{trial.contexts} contexts"] if trial.contexts > 1 else []
    parts += [f"{trial.actors} actors"] if trial.actors > 1 else []
    return ", ".join(parts)


def tables(rows: Sequence[Row], baseline: str | None = None) -> list[str]:
    """The grids as lines of text.

    Args:
        rows: Of a sweep.
        baseline: The backend whose times others are held against: ``(x2.00)`` is twice as fast.
    """
    lines: list[str] = []
    for grid in grids(rows, baseline):
        table = [["batch", *map(str, grid.sizes)]]
        table += [[model, *map(str, cells)] for model, cells in grid.lines]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines += [*([""] if lines else []), f"{grid.setting}: {grid.unit}"]
        for first, *others in table:
            texts = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join(["", first.ljust(widths[0]), *texts]).rstrip())
    return lines


def speed_ups(rows: Sequence[Row], baseline: str | None) -> dict[Trial, float]:
    """How many times faster than the baseline each trial is, for those that can be held against it."""
    times_ms: dict[Trial, float] = {}
    for row in rows:
        if row.trial.backend == baseline and row.found.host_p50_ms:
            # On the device itself where the backend runs there, else wherever it ran first.
            times_ms[replace(row.trial, backend="")] = row.found.host_p50_ms
            times_ms.setdefault(replace(row.trial, backend="", device=""), row.found.host_p50_ms)
    found = {}
    for row in rows:
        here = replace(row.trial, backend="")
        base_ms = times_ms.get(here) or times_ms.get(replace(here, device=""))
        if row.trial.backend != baseline and base_ms is not None and row.found.host_p50_ms:
            found[row.trial] = base_ms / row.found.host_p50_ms
    return found
