"""Layered drawings: boxes apart, edges downwards, the same picture every time."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given, settings
from trtfleet.jobs.layered_layout import Layout, lay_out
from trtfleet.jobs.layered_order import order_layers, rank

TALL = (700.0, 1e9)

Graph = tuple[list[tuple[float, float]], list[tuple[int, int]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    number = draw(st.integers(1, 40))
    sizes = st.tuples(st.integers(10, 200), st.integers(10, 60))
    boxes = [(float(w), float(h)) for w, h in draw(st.lists(sizes, min_size=number, max_size=number))]
    ends = st.integers(0, number - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), max_size=80, unique=True))
    return boxes, [(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]]


def overlaps(boxes: list[tuple[float, float]], layout: Layout) -> list[tuple[int, int]]:
    def apart(a: int, b: int) -> bool:
        (ax, ay), (bx, by) = layout.places[a], layout.places[b]
        (aw, ah), (bw, bh) = boxes[a], boxes[b]
        near = 1e-6
        return ax + aw <= bx + near or bx + bw <= ax + near or ay + ah <= by + near or by + bh <= ay + near

    return [(a, b) for a in range(len(boxes)) for b in range(a) if not apart(a, b)]


@settings(deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_stay_inside(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    boxes, edges = graph
    layout = lay_out(boxes, edges)
    assert overlaps(boxes, layout) == []
    for (x, y), (width, height) in zip(layout.places, boxes, strict=True):
        assert -1e-6 <= x <= layout.width - width + 1e-6
        assert -1e-6 <= y <= layout.height - height + 1e-6


@settings(deadline=None)
@given(graphs())
def test_edges_lead_down_from_rim_to_rim(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    boxes, edges = graph
    layout = lay_out(boxes, edges, frame=TALL)
    for (source, target), route in zip(edges, layout.routes, strict=True):
        (x, y), (width, height) = layout.places[source], boxes[source]
        assert abs(route[0][0] - (x + width / 2)) < 1e-6
        assert abs(route[0][1] - (y + height)) < 1e-6
        assert abs(route[-1][1] - layout.places[target][1]) < 1e-6
        assert all(above[1] <= below[1] + 1e-6 for above, below in pairwise(route))


@settings(deadline=None)
@given(graphs())
def test_the_same_graph_gives_the_same_layout(
    graph: tuple[list[tuple[float, float]], list[tuple[int, int]]],
) -> None:
    assert lay_out(*graph) == lay_out(*graph)


def test_a_crossing_that_need_not_be_is_removed() -> None:
    ranked = rank(4, [(0, 3), (1, 2)])
    upper, lower = order_layers(ranked)
    assert [{0: 3, 1: 2}[node] for node in upper] == lower


def test_a_long_chain_is_wrapped_to_fit_a_window() -> None:
    number = 3000
    layout = lay_out([(100.0, 38.0)] * number, list(pairwise(range(number))))
    assert 0.3 < layout.width / layout.height < 3
    assert min(x for x, _ in layout.places) == 0
    assert not layout.loose


def test_a_short_chain_is_one_column() -> None:
    layout = lay_out([(100.0, 38.0)] * 10, list(pairwise(range(10))))
    assert len({x for x, _ in layout.places}) == 1


def test_edges_too_long_to_route_are_loose() -> None:
    edges = [*pairwise(range(60)), (0, 59)]
    layout = lay_out([(100.0, 38.0)] * 60, edges)
    assert layout.loose == {59}
    assert len(layout.routes[59]) == 2


def test_a_cycle_is_drawn_all_the_same() -> None:
    layout = lay_out([(50.0, 20.0)] * 3, [(0, 1), (1, 2), (2, 1)])
    assert len(layout.routes) == 3
    assert overlaps([(50.0, 20.0)] * 3, layout) == []


def test_nothing_gives_nothing() -> None:
    assert lay_out([], []).places == ()
