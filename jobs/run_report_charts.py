"""The drawings of a run's report as inline SVG: rates over its time, of all actors and of each."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .run_report_history import Timeline

__all__ = ["Phase", "duration_text", "lanes", "rate_text", "throughput"]

_WIDTH = 1000
_LEFT, _RIGHT = 120, 16
_HEIGHT, _TOP, _BOTTOM = 230, 14, 30
_LANE_MOST, _LANE_LEAST = 34, 14
_STEPS = (1, 2, 5, 10)
_TIME_STEPS_S = (
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    43200,
    86400,
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run's time in which nothing is scored, from one second to another."""

    name: str
    start_s: float
    end_s: float


def throughput(
    timeline: Timeline,
    *,
    end_s: float,
    before_s: float,
    engines_rows_per_s: float,
    phases: Sequence[Phase],
) -> str:
    """Rows per second of all actors over the time of a run.

    Args:
        timeline: What was done when.
        end_s: When the run ended.
        before_s: What the command took before the first of these times.
        engines_rows_per_s: What the engines alone would do; 0 where that is not known.
        phases: Shaded and named.
    """
    rates = timeline.rows_per_s.sum(axis=0)
    highest = float(rates.max(initial=0.0))
    # A line far above everything would flatten what is drawn.
    engines = engines_rows_per_s if engines_rows_per_s <= 4 * highest else 0.0
    most = max(highest, engines, 1e-9) * 1.16
    floor = _HEIGHT - _BOTTOM
    up = (floor - _TOP) / most
    across = _Across(end_s, before_s)
    drawn = [_phase(phase, across, _TOP, floor) for phase in phases]
    for mark in _marks(most):
        y = floor - mark * up
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(mark)}</text>'
        )
    drawn.append(f'<path class="area" d="{_steps(rates, timeline.bin_s, across, floor, up)}"/>')
    if engines:
        y = floor - engines * up
        drawn.append(
            f'<line class="engines" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="engines" x="{_WIDTH / 2}" y="{y - 6:.1f}" text-anchor="middle">'
            f"engines alone: {rate_text(engines)}</text>"
        )
    drawn += [
        f'<path class="failed" d="M{across((place + 0.5) * timeline.bin_s):.1f} {floor - 9}l5 9h-10z">'
        f"<title>{int(count)} failed after {duration_text(before_s + place * timeline.bin_s)}</title></path>"
        for place, count in enumerate(timeline.failures)
        if count
    ]
    drawn.append(across.axis(floor))
    return _svg(_HEIGHT, "Rows per second of all actors over time", drawn)


def lanes(
    timeline: Timeline, names: Sequence[str], *, end_s: float, before_s: float, phases: Sequence[Phase]
) -> str:
    """The same of each actor, or of groups of them, one below the other on one scale.

    Args:
        timeline: What was done when.
        names: Of the lanes.
        end_s: When the run ended.
        before_s: What the command took before the first of these times.
        phases: Shaded.
    """
    rates = timeline.rows_per_s[: len(names)]
    height = min(_LANE_MOST, max(_LANE_LEAST, 340 // max(1, len(names))))
    floor = 6 + height * len(names)
    up = (height - 3) / max(float(rates.max(initial=0.0)), 1e-9)
    across = _Across(end_s, before_s)
    drawn = [_phase(phase, across, 6, floor, is_named=False) for phase in phases]
    for place, name in enumerate(names):
        line = 6 + height * (place + 1)
        mean = float(timeline.rows[place].sum()) / max(end_s, 1e-9)
        said = html.escape(
            f"{name}: {rate_text(float(rates[place].max(initial=0.0)))} at most, {rate_text(mean)} on average"
        )
        shown = html.escape(name if len(name) <= 19 else name[:18] + "…")
        drawn.append(
            f'<g class="lane"><title>{said}</title>'
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{line}" y2="{line}"/>'
            f'<text x="{_LEFT - 8}" y="{line - height / 2 + 4:.1f}" text-anchor="end">{shown}</text>'
            f'<path class="area" d="{_steps(rates[place], timeline.bin_s, across, line, up)}"/></g>'
        )
    drawn.append(across.axis(floor))
    return _svg(floor + _BOTTOM, "Rows per second of each actor over time", drawn)


def rate_text(rows_per_s: float) -> str:
    """Rows a second in words."""
    return f"{rows_per_s:,.0f} rows/s" if rows_per_s >= 10 or not rows_per_s else f"{rows_per_s:.2g} rows/s"


def duration_text(seconds: float) -> str:
    """Seconds in words: ``40 ms``, ``1.2 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    minutes = round(whole / 60)
    return f"{minutes // 60:,} h" + (f" {minutes % 60} min" if minutes % 60 else "")


class _Across:
    """Places seconds of a run; those of the axis begin with the command."""

    def __init__(self, end_s: float, before_s: float) -> None:
        self._before_s = before_s
        self._end_s = max(end_s + before_s, 1e-3)

    def __call__(self, at_s: float) -> float:
        share = min(max((at_s + self._before_s) / self._end_s, 0.0), 1.0)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def axis(self, floor: float) -> str:
        """Marks below a drawing."""
        step = next((step for step in _TIME_STEPS_S if self._end_s / step <= 9), _TIME_STEPS_S[-1])
        step *= max(1, math.ceil(self._end_s / step / 9))
        drawn = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>']
        for number in range(int(self._end_s / step) + 1):
            x, text = self(number * step - self._before_s), _mark_text(number * step)
            drawn.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 4}"/>'
                f'<text x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{text}</text>'
            )
        return "".join(drawn)


def _mark_text(seconds: float) -> str:
    return "0" if not seconds else f"{seconds:g} s" if seconds < 60 else duration_text(seconds)


def _phase(phase: Phase, across: _Across, top: float, floor: float, *, is_named: bool = True) -> str:
    x, width = across(phase.start_s), across(phase.end_s) - across(phase.start_s)
    if width < 1:
        return ""
    name = html.escape(phase.name)
    said = f"{name}: {duration_text(phase.end_s - phase.start_s)}"
    label = ""
    if is_named and width > 7 * len(phase.name):
        label = f'<text x="{x + width / 2:.1f}" y="{top + 12}" text-anchor="middle">{name}</text>'
    return (
        f'<rect class="phase" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{floor - top:.1f}">'
        f"<title>{said}</title></rect>{label}"
    )


def _steps(rates: np.ndarray, bin_s: float, across: _Across, floor: float, up: float) -> str:
    """The outline of a row of columns that touch."""
    path, last = [f"M{across(0):.1f} {floor:.1f}"], 0.0
    for place, rate in enumerate(rates):
        if rate != last:
            path.append(f"H{across(place * bin_s):.1f}V{floor - max(0.0, float(rate)) * up:.1f}")
            last = rate
    path.append(f"H{across(len(rates) * bin_s):.1f}V{floor:.1f}Z")
    return "".join(path)


def _marks(most: float) -> list[float]:
    """Three to five round numbers up to a largest one."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(power * step for step in _STEPS if most / (power * step) <= 5)
    return [step * number for number in range(int(most / step) + 1)]


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def _svg(height: float, said: str, drawn: Sequence[str]) -> str:
    # On a narrow screen it scrolls sideways: shrunk to fit, nobody could read its numbers.
    return (
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{said}">{"".join(drawn)}</svg></div>'
    )
