"""The charts of a sweep's page: a model on a kind of device against batch sizes, its front, and scaling."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from .chart import Line, Point, chart, swatch
from .grid import Trial
from .results import Row
from .tables import setting

__all__ = ["model_section", "scaling_section"]

_BATCH = "batch size"


def model_section(model: str, device: str, rows: Sequence[Row], front: frozenset[Trial]) -> str:
    """Latency and throughput of one model on one kind of device, and what they cost each other."""
    groups = _by_setting(row for row in rows if row.found.error is None)
    if not groups:
        return ""
    marks = sorted({row.trial.batch_size for row in rows})
    drawings = [
        chart(title, _lines(groups, column, unit), x_name=_BATCH, marks=marks)
        for title, column, unit in (
            ("Median of a batch, host to host, ms", "host_p50", "_ms"),
            ("Median of a batch, engine alone, ms", "engine_p50", "_ms"),
            ("Rows per second", "rows_per_s", ""),
        )
    ]
    drawings.append(_pareto(groups, front))
    return (
        f"<section class='model'><h2>{html.escape(model)} "
        f"<span class='soft'>on {html.escape(device)}</span></h2>"
        f"<ul class='legend'>{_legend(list(groups))}</ul>"
        f"<div class='drawings'>{''.join(drawings)}</div></section>"
    )


def _by_setting(rows: Iterable[Row]) -> dict[Trial, list[Row]]:
    groups: dict[Trial, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.trial.batch_size):
        groups.setdefault(replace(row.trial, batch_size=1), []).append(row)
    return groups


def _short(key: Trial) -> str:
    """A setting without the device, which the section names."""
    return setting(key).removeprefix(f"{key.device}, ")


def _legend(keys: Sequence[Trial]) -> str:
    return "".join(f"<li>{swatch(color)}{html.escape(_short(key))}</li>" for color, key in enumerate(keys))


def _lines(groups: Mapping[Trial, Sequence[Row]], column: str, unit: str) -> list[Line]:
    lines = []
    for color, (key, members) in enumerate(groups.items()):
        points = [point for row in members if (point := _point(row, column, unit)) is not None]
        if points:
            lines.append(Line(name=_short(key), points=points, color=color))
    return lines


def _point(row: Row, column: str, unit: str) -> Point | None:
    found = vars(row.found)
    value = found[f"{column}{unit}"]
    if not value:
        return None
    low, high = found[f"{column}_low{unit}"], found[f"{column}_high{unit}"]
    return Point(x=row.trial.batch_size, y=value, low=low, high=high)


def _pareto(groups: Mapping[Trial, Sequence[Row]], front: frozenset[Trial]) -> str:
    lines: list[Line] = []
    best: list[Point] = []
    for color, (key, members) in enumerate(groups.items()):
        points = []
        for row in members:
            if row.found.host_p50_ms and row.device_rate:
                label = f"batch {row.trial.batch_size}"
                point = Point(x=row.found.host_p50_ms, y=row.device_rate, label=label)
                points.append(point)
                best += [point] if row.trial in front else []
        if points:
            lines.append(Line(name=_short(key), points=points, color=color, is_joined=False))
    return chart(
        "Rows per second of one device against latency; ringed: nothing beats it in both",
        lines,
        x_name="median of a batch, host to host, ms",
        front=sorted(best, key=lambda point: point.x),
    )


def scaling_section(rows: Sequence[Row], table: str) -> str:
    """How much of several actors' ideal rate they have; for each setting at its best batch size.

    Args:
        rows: Of a sweep.
        table: The same of every batch size, as HTML.
    """
    if not table:
        return ""
    rates = {row.trial: row.found.rows_per_s or 0.0 for row in rows if row.found.rows_per_s}
    best: dict[Trial, Trial] = {}
    for alone in (trial for trial in rates if trial.actors == 1):
        key = replace(alone, batch_size=1)
        if key not in best or rates[alone] > rates[best[key]]:
            best[key] = alone
    lines: list[Line] = []
    for alone in best.values():
        several = [trial for trial in rates if replace(trial, actors=1) == alone]
        if len(several) > 1:
            points = [
                Point(x=t.actors, y=100 * rates[t] / (rates[alone] * t.actors))
                for t in sorted(several, key=lambda trial: trial.actors)
            ]
            name = f"{alone.model}, {setting(alone)}, batch {alone.batch_size}"
            lines.append(Line(name=name, points=points, color=len(lines)))
    marks = sorted({int(point.x) for line in lines for point in line.points})
    drawing = chart(
        "Rate of several actors, % of as many times one actor's",
        lines,
        x_name="actors",
        marks=marks,
        from_zero=True,
    )
    legend = "".join(f"<li>{swatch(line.color)}{html.escape(line.name)}</li>" for line in lines)
    return (
        f"<section id='scaling'><h2>Scaling</h2><ul class='legend'>{legend}</ul>"
        f"<div class='drawings'>{drawing}{table}</div></section>"
    )
