"""The tables of a sweep's page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .compare import Change, number_text
from .grid import Trial
from .results import Row
from .tables import Cell, grids, setting, speed_ups

__all__ = ["best_table", "changes_table", "grid_tables", "scaling_table", "table", "trials_table"]

_SHADES = ((0.67, "much-slower"), (0.95, "slower"), (1.05, ""), (1.5, "faster"), (3.0, "much-faster"))
_MOST = "most-faster"


def best_table(best: Sequence[Row]) -> str:
    """The settings with most rows per second, those of a kind of device together."""
    cells = [
        [
            row.trial.device,
            row.trial.model,
            row.trial.precision,
            row.trial.backend,
            str(row.trial.batch_size),
            str(row.trial.contexts),
            str(row.trial.actors),
            f"{row.found.rows_per_s:,.0f}",
            _number(row.found.host_p50_ms),
        ]
        for row in sorted(best, key=lambda row: row.trial.device)
    ]
    heads = ["device", "model", "precision", "backend", "batch", "contexts", "actors", "rows/s", "p50, ms"]
    return table(heads, cells, numbers=range(4, 9))


def grid_tables(rows: Sequence[Row], baseline: str | None) -> str:
    """Models by batch sizes for each setting; shaded by how they stand against the baseline."""
    made = []
    for grid in grids(rows, baseline):
        head = "".join(f"<th class='number'>{size}</th>" for size in grid.sizes)
        body = "".join(
            f"<tr><th>{html.escape(model)}</th>{''.join(map(_grid_cell, cells))}</tr>"
            for model, cells in grid.lines
        )
        made.append(
            f"<div><h3>{html.escape(grid.setting)} <span>{grid.unit}</span></h3><div class='scroll'>"
            f"<table class='grid'><thead><tr><th>batch</th>{head}</tr></thead><tbody>{body}</tbody>"
            "</table></div></div>"
        )
    return f"<div class='drawings'>{''.join(made)}</div>"


def _grid_cell(cell: Cell) -> str:
    if cell.is_failed:
        return f"<td class='number bad'>{cell.text}</td>"
    if cell.speed_up is None:
        return f"<td class='number'>{cell.text}</td>"
    ratio = cell.speed_up
    shade = next((name for limit, name in _SHADES if ratio < limit), _MOST)
    return f"<td class='number {shade}'>{cell.text}<small>×{ratio:.2f}</small></td>"


def scaling_table(rows: Sequence[Row]) -> str:
    """How many times one actor's rate several have; empty where the sweep does not have both."""
    alone = {row.trial: row.found.rows_per_s for row in rows if row.trial.actors == 1}
    cells = []
    for row in rows:
        one = alone.get(replace(row.trial, actors=1))
        if row.trial.actors > 1 and one and row.found.rows_per_s:
            share = row.found.rows_per_s / one
            line = [setting(replace(row.trial, actors=1)), row.trial.model, str(row.trial.batch_size)]
            line += [str(row.trial.actors), f"{share:.2f}", f"{share / row.trial.actors:.0%}"]
            cells.append(line)
    heads = ["setting", "model", "batch", "actors", "times one actor", "efficiency"]
    return table(heads, cells, numbers=range(2, 6)) if cells else ""


def trials_table(rows: Sequence[Row], baseline: str | None, front: frozenset[Trial]) -> str:
    """Every trial that succeeded."""
    ratios = speed_ups(rows, baseline)
    heads = ["model", "setting", "batch", "front", "p50, ms", "95% of p50", "p90", "p99", "engine p50"]
    heads += ["rows/s", "95% of rows/s", "clock, MHz", "°C", "W", "throttled", "steady"]
    heads += [f"times {baseline}"] if baseline else []
    cells = []
    for row in rows:
        found = row.found
        if found.error is not None:
            continue
        line = [
            row.trial.model,
            setting(row.trial),
            str(row.trial.batch_size),
            "◉" if row.trial in front else "",
            _number(found.host_p50_ms),
            _range(found.host_p50_low_ms, found.host_p50_high_ms, ".3f"),
            _number(found.host_p90_ms),
            _number(found.host_p99_ms),
            _number(found.engine_p50_ms),
            _number(found.rows_per_s, ",.0f"),
            _range(found.rows_per_s_low, found.rows_per_s_high, ",.0f"),
            _number(found.gpu_clock_mhz, ".0f"),
            _number(found.temperature_c, ".0f"),
            _number(found.power_w, ".0f"),
            found.throttled or "",
            "yes" if found.is_steady else "no",
        ]
        ratio = ratios.get(row.trial)
        cells.append(line + ([f"{ratio:.2f}" if ratio else ""] if baseline else []))
    # Columns without anything, as those of GPUs on a CPU, are left out.
    used = [place for place in range(len(heads)) if any(line[place] for line in cells)]
    numbers = [place for place, one in enumerate(used) if 2 <= one <= 13 or one == 16]
    return table(
        [heads[place] for place in used], ([line[place] for place in used] for line in cells), numbers=numbers
    )


def changes_table(changes: Sequence[Change]) -> str:
    """What changed since an earlier sweep, what became worse first; empty where nothing did."""
    listed = sorted(
        (change for change in changes if change.verdict != "same"),
        key=lambda change: change.verdict not in ("slower", "fails now"),
    )
    cells = [
        [
            change.verdict,
            str(change.trial),
            change.metric,
            "" if change.before is None else number_text(change.before),
            "" if change.now is None else number_text(change.now),
            "" if change.share is None else f"{change.share:+.1%}",
            "" if change.noise is None else f"±{change.noise:.1%}",
        ]
        for change in listed
    ]
    heads = ["", "trial", "number", "before", "now", "change", "noise"]
    return table(heads, cells, numbers=range(3, 7), is_marked=True) if cells else ""


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: Iterable[int] = (),
    *,
    is_marked: bool = False,
) -> str:
    """A table that scrolls sideways where it is too wide.

    Args:
        heads: Of the columns, as text.
        rows: Their texts.
        numbers: The columns that are set flush right.
        is_marked: Whether the first column holds verdicts, which get a color.
    """
    right = set(numbers)

    def cell(tag: str, place: int, text: str) -> str:
        kinds = ["number"] if place in right else []
        if is_marked and not place and tag == "td":
            kinds.append("bad" if text in ("slower", "fails now") else "good")
        attribute = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", place, text) for place, text in enumerate(heads))
    body = "".join(
        f"<tr>{''.join(cell('td', place, text) for place, text in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else f"{value:{form}}"


def _range(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f"{low:{form}} to {high:{form}}"
