"""Charts as inline SVG: lines or points with their intervals, on logarithmic axes or from zero."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["COLORS", "Line", "Point", "chart", "swatch"]

COLORS = 8
"""Classes ``s0`` and up that the page gives a color; further lines are dashed."""

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 12, 38
_LEAST_GAP = 26.0
_LEAST_LABEL_GAP = 56.0
_STEPS = (1, 2, 5)
_LINEAR_MARKS = 5


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number and its interval, if it is known, at a place above 0; ``label`` stands beside it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points under a name, in one of the colors.

    Attributes:
        name: What they are, for who points at one.
        points: In rising order of x where they are joined.
        color: Which; also of those beyond ``COLORS``.
        is_joined: Whether a line goes through them.
    """

    name: str
    points: Sequence[Point]
    color: int
    is_joined: bool = True


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str,
    marks: Sequence[int] | None = None,
    from_zero: bool = False,
    front: Sequence[Point] = (),
) -> str:
    """Draws lines; empty when there is nothing to draw.

    Args:
        title: What is drawn, with its unit.
        lines: With numbers above 0.
        x_name: What the horizontal axis is.
        marks: Where that has numbers, in rising order; None for round ones.
        from_zero: Whether the vertical axis is linear and begins at 0; it is logarithmic otherwise.
        front: Points to ring and to join by a dashed line, in rising order of x.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs = [float(mark) for mark in marks] if marks else [point.x for point in points]
    lows, highs = [p.low or p.y for p in points], [p.high or p.y for p in points]
    across = _Axis(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    up = _Axis(0.0 if from_zero else min(lows), max(highs), _HEIGHT - _BOTTOM, _TOP, is_log=not from_zero)
    drawn = [
        *_scales(across, up, marks),
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{html.escape(x_name)}</text>",
        *_front(front, across, up),
        *(_line(line, across, up) for line in lines),
        *_labels(front, across, up),
    ]
    said = html.escape(title)
    return (
        f'<div><h3>{said}</h3><svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{said}">{"".join(drawn)}</svg></div>'
    )


def swatch(color: int) -> str:
    """A piece of a line, for a legend."""
    return (
        f'<svg viewBox="0 0 22 10" aria-hidden="true"><line class="trace {_classes(color)}" '
        'x1="0" x2="22" y1="5" y2="5"/></svg>'
    )


class _Axis:
    """Places numbers on an axis between two ends of the drawing."""

    def __init__(self, low: float, high: float, start: float, end: float, *, is_log: bool = True) -> None:
        # A little room around what is drawn, and a width where all numbers are the same.
        self._low, self._high = low / 1.08, high * 1.08
        self._start, self._end, self._is_log = start, end, is_log

    def __call__(self, value: float) -> float:
        if self._is_log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def marks(self) -> list[float]:
        """Round numbers on the axis, not too many."""
        if not self._is_log:
            step = next(s for s in _round_numbers(-6, 16) if self._high / s <= _LINEAR_MARKS)
            return [step * number for number in range(int(self._high / step) + 1)]
        first, last = math.floor(math.log10(self._low)), math.ceil(math.log10(self._high))
        steps = _STEPS if last - first <= 3 else (1,)
        inside = [mark for mark in _round_numbers(first, last, steps) if self._low <= mark <= self._high]
        if len(inside) >= 2:
            return inside
        return [self._low * 1.08, math.sqrt(self._low * self._high), self._high / 1.08]


def _round_numbers(first: int, last: int, steps: Sequence[int] = _STEPS) -> Iterator[float]:
    return (step * 10.0**decade for decade in range(first, last + 1) for step in steps)


def _scales(across: _Axis, up: _Axis, marks: Sequence[int] | None) -> Iterator[str]:
    for mark in up.marks():
        y = up(mark)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(mark)}</text>'
    last = -math.inf
    for mark in marks or across.marks():
        x = across(mark)
        if x - last >= _LEAST_GAP:
            last = x
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            yield f'<text x="{x:.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{_short(mark)}</text>'


def _line(line: Line, across: _Axis, up: _Axis) -> str:
    color = _classes(line.color)
    places = " ".join(f"{across(point.x):.1f},{up(point.y):.1f}" for point in line.points)
    drawn = [f'<polyline class="trace {color}" points="{places}"/>'] if line.is_joined else []
    for point in line.points:
        x = across(point.x)
        if point.low and point.high:
            drawn.append(
                f'<line class="noise {color}" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>'
            )
        said = html.escape(f"{line.name}, {point.label or f'{point.x:g}'}: {point.y:,.4g}")
        dot = f'<circle class="{color}" cx="{x:.1f}" cy="{up(point.y):.1f}" r="3.2">'
        drawn.append(f"{dot}<title>{said}</title></circle>")
    return "".join(drawn)


def _front(front: Sequence[Point], across: _Axis, up: _Axis) -> Iterator[str]:
    if front:
        places = " ".join(f"{across(point.x):.1f},{up(point.y):.1f}" for point in front)
        yield f'<polyline class="front" points="{places}"/>'
    for point in front:
        yield f'<circle class="ring" cx="{across(point.x):.1f}" cy="{up(point.y):.1f}" r="7"/>'


def _labels(front: Sequence[Point], across: _Axis, up: _Axis) -> Iterator[str]:
    last_x = -math.inf
    for point in front:
        x, y = across(point.x), up(point.y)
        if x - last_x < _LEAST_LABEL_GAP:
            continue
        last_x = x
        # To the left of a point that lies far to the right, which would be cut off.
        side, anchor = (-10, "end") if x > 0.85 * _WIDTH else (10, "start")
        yield (
            f'<text class="label" x="{x + side:.1f}" y="{y + 14:.1f}" text-anchor="{anchor}">'
            f"{html.escape(point.label)}</text>"
        )


def _classes(color: int) -> str:
    return f"s{color % COLORS}" + (" dashed" if color >= COLORS else "")


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
