"""Places the nodes of a directed graph in layers, top to bottom, wrapped into columns when it is very deep.

Layers come from longest paths, the order inside a layer from barycenters, horizontal places from an exact
least-squares fit that keeps the order. Everything is deterministic, and linear but for sorting: thousands of
nodes take about a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .layered_order import BEND_WIDTH, Ranked, order_layers, rank, spread

__all__ = ["Layout", "lay_out"]

_LAYER_GAP = 26.0
_COLUMN_GAP = 48.0
_LANE = 6.0
_LEGIBLE = 0.6
_MOST_COLUMNS = 80


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything is; the origin is the upper left corner, y grows downwards.

    Attributes:
        places: The upper left corner of each box.
        routes: For each edge the points from the lower rim of its source to the upper rim of its target. Two
            points of a routed edge are joined by a curve when the second lies lower, else by a line.
        loose: Edges too long to be routed around other boxes; their routes have two points.
        width: Of the whole drawing.
        height: Of the whole drawing.
    """

    places: tuple[tuple[float, float], ...]
    routes: tuple[tuple[tuple[float, float], ...], ...]
    loose: frozenset[int]
    width: float
    height: float


@dataclass(frozen=True)
class _Column:
    first: int
    end: int
    left: float
    x: float
    bottom: float


def lay_out(
    boxes: Sequence[tuple[float, float]],
    edges: Sequence[tuple[int, int]],
    *,
    frame: tuple[float, float] = (700.0, 760.0),
) -> Layout:
    """Places boxes so that edges lead downwards.

    Args:
        boxes: Width and height of each.
        edges: Pairs of source and target. Edges of a cycle are drawn, but do not influence the places.
        frame: Width and height of the window that the drawing is first seen in. A drawing that would shrink
            below legibility there is wrapped into columns, read like those of a newspaper.

    Returns:
        The layout.
    """
    if not boxes:
        return Layout(places=(), routes=(), loose=frozenset(), width=0.0, height=0.0)
    ranked = rank(len(boxes), edges)
    layers = order_layers(ranked)
    widths = [width for width, _ in boxes] + [BEND_WIDTH] * (ranked.vertices - len(boxes))
    xs = spread(ranked, layers, widths)
    heights = [max((boxes[v][1] for v in layer if v < len(boxes)), default=0.0) for layer in layers]
    return _Wrapping(ranked, layers, widths, xs, heights, frame).layout(boxes, edges)


class _Wrapping:
    """The cutting of one tall stack of layers into columns."""

    def __init__(
        self,
        ranked: Ranked,
        layers: Sequence[Sequence[int]],
        widths: Sequence[float],
        xs: Sequence[float],
        heights: Sequence[float],
        frame: tuple[float, float],
    ) -> None:
        self._ranked = ranked
        self._xs = xs
        self._heights = heights
        self._left = [min(xs[v] - widths[v] / 2 for v in layer) for layer in layers]
        self._right = [max(xs[v] + widths[v] / 2 for v in layer) for layer in layers]
        # How many lines pass between a layer and the one above it: few is a good place for a cut.
        self._lines = [0] * len(layers)
        for chain in ranked.chains.values():
            for vertex in chain[1:]:
                self._lines[ranked.layer[vertex]] += 1
        self._columns, self.width, self.height = self._best(frame)
        self._column_of = [number for number, c in enumerate(self._columns) for _ in range(c.first, c.end)]
        self._top = self._tops()

    def _best(self, frame: tuple[float, float]) -> tuple[list[_Column], float, float]:
        best, best_scale = self._cut(1), 0.0
        for count in range(1, min(_MOST_COLUMNS, len(self._heights)) + 1):
            found = self._cut(count)
            scale = min(frame[0] / found[1], frame[1] / found[2])
            if scale > best_scale:
                best, best_scale = found, scale
            if best_scale >= _LEGIBLE:
                break
        return best

    def _cut(self, count: int) -> tuple[list[_Column], float, float]:
        number = len(self._heights)
        window = max(1, number // count // 6)
        starts = [0]
        for part in range(1, count):
            ideal = round(part * number / count)
            near = range(max(starts[-1] + 1, ideal - window), min(number - 1, ideal + window) + 1)
            if near:
                starts.append(min(near, key=lambda at: (self._lines[at], abs(at - ideal))))
        columns: list[_Column] = []
        x = tallest = most_lanes = 0.0
        for first, end in zip(starts, [*starts[1:], number], strict=True):
            lanes = _LANE * (self._lines[end] if end < number else 0)
            left = min(self._left[first:end])
            bottom = sum(self._heights[first:end]) + _LAYER_GAP * (end - first - 1)
            columns.append(_Column(first, end, left, x, bottom))
            x += max(self._right[first:end]) - left + _COLUMN_GAP + lanes
            tallest, most_lanes = max(tallest, bottom), max(most_lanes, lanes)
        room = 2 * (most_lanes + 2 * _LANE) if count > 1 else 0.0
        return columns, x - _COLUMN_GAP, tallest + room

    def _tops(self) -> list[float]:
        lanes = max((_LANE * self._lines[column.first] for column in self._columns[1:]), default=-2 * _LANE)
        self._margin = lanes + 2 * _LANE
        tops: list[float] = []
        for column in self._columns:
            y = self._margin
            for height in self._heights[column.first : column.end]:
                tops.append(y)
                y += height + _LAYER_GAP
        return tops

    def _x(self, vertex: int) -> float:
        column = self._columns[self._column_of[self._ranked.layer[vertex]]]
        return self._xs[vertex] - column.left + column.x

    def layout(self, boxes: Sequence[tuple[float, float]], edges: Sequence[tuple[int, int]]) -> Layout:
        places = []
        for vertex, (width, height) in enumerate(boxes):
            layer = self._ranked.layer[vertex]
            places.append(
                (self._x(vertex) - width / 2, self._top[layer] + (self._heights[layer] - height) / 2)
            )
        used = [0] * len(self._columns)
        routes: list[tuple[tuple[float, float], ...]] = []
        for number, (source, target) in enumerate(edges):
            start = (self._x(source), places[source][1] + boxes[source][1])
            stop = (self._x(target), places[target][1])
            chain = self._ranked.chains.get(number)
            routes.append((start, stop) if chain is None else self._route(chain, start, stop, used))
        loose = frozenset(range(len(edges))) - self._ranked.chains.keys()
        return Layout(
            places=tuple(places), routes=tuple(routes), loose=loose, width=self.width, height=self.height
        )

    def _route(
        self, chain: Sequence[int], start: tuple[float, float], stop: tuple[float, float], used: list[int]
    ) -> tuple[tuple[float, float], ...]:
        points = [start]
        for below in chain[1:]:
            layer = self._ranked.layer[below]
            arrival = stop if below == chain[-1] else (self._x(below), self._top[layer])
            before, after = self._column_of[layer - 1], self._column_of[layer]
            if before != after:
                points += self._lane(before, after, points[-1][0], arrival[0], used)
            points.append(arrival)
            if below != chain[-1]:
                points.append((arrival[0], self._top[layer] + self._heights[layer]))
        return tuple(points)

    def _lane(
        self, before: int, after: int, leaves: float, enters: float, used: list[int]
    ) -> list[tuple[float, float]]:
        """Down below a column, up beside it, over to the next one's top; each line has a lane of its own."""
        used[before] += 1
        offset = _LANE * used[before]
        column = self._columns[before]
        below = self._margin + column.bottom + _LANE + offset
        above = self._margin - _LANE - offset
        beside = self._columns[after].x - _COLUMN_GAP / 2 - offset
        return [(leaves, below), (beside, below), (beside, above), (enters, above)]
