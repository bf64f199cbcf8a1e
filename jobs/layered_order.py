"""The steps of a layered drawing: layers, the order inside each, and horizontal places."""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["BEND_WIDTH", "Ranked", "order_layers", "rank", "spread"]

BEND_WIDTH = 6.0
"""The width that an edge takes where it passes a layer."""

_LONGEST_ROUTED = 24
_BENDS_PER_VERTEX = 4
_SWEEPS = 6
_GAP = 18.0
_BEND_PULL = 0.15
_BEND_MASS = 0.05
_SPINE_MASS = 1e6


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A graph whose every routed edge passes through all layers between its ends.

    Attributes:
        vertices: How many there are: first the nodes, then bends, the places where edges pass a layer.
        nodes: How many of them are nodes.
        layer: Of each vertex.
        chains: For each routed edge its vertices from source to target; longest edges are missing.
        above: For each vertex its neighbours in the layer above.
        below: For each vertex its neighbours in the layer below.
    """

    vertices: int
    nodes: int
    layer: Sequence[int]
    chains: Mapping[int, Sequence[int]]
    above: Sequence[Sequence[int]]
    below: Sequence[Sequence[int]]


def rank(nodes: int, edges: Sequence[tuple[int, int]]) -> Ranked:
    """Gives every node a layer below its predecessors', and every edge of bearable length its bends."""
    layer = _layers(nodes, edges)
    chains: dict[int, list[int]] = {}
    budget = _BENDS_PER_VERTEX * nodes + 1000
    vertices = nodes
    spans = sorted((layer[target] - layer[source], number) for number, (source, target) in enumerate(edges))
    for span, number in spans:
        if 1 <= span <= _LONGEST_ROUTED and span - 1 <= budget:
            source, target = edges[number]
            bends = list(range(vertices, vertices + span - 1))
            layer += range(layer[source] + 1, layer[target])
            vertices += len(bends)
            budget -= len(bends)
            chains[number] = [source, *bends, target]
    above: list[list[int]] = [[] for _ in range(vertices)]
    below: list[list[int]] = [[] for _ in range(vertices)]
    for number in sorted(chains):
        for upper, lower in zip(chains[number], chains[number][1:], strict=False):
            below[upper].append(lower)
            above[lower].append(upper)
    return Ranked(vertices=vertices, nodes=nodes, layer=layer, chains=chains, above=above, below=below)


def _layers(nodes: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    needs: list[set[int]] = [set() for _ in range(nodes)]
    feeds: list[set[int]] = [set() for _ in range(nodes)]
    for source, target in edges:
        if source != target:
            needs[target].add(source)
            feeds[source].add(target)
    missing = [len(found) for found in needs]
    ready = [node for node in range(nodes) if not missing[node]]
    order: list[int] = []
    layer = [0] * nodes
    while ready:
        node = heapq.heappop(ready)
        order.append(node)
        for target in feeds[node]:
            layer[target] = max(layer[target], layer[node] + 1)
            missing[target] -= 1
            if not missing[target]:
                heapq.heappush(ready, target)
    # What feeds more than it needs sits right above its first reader: constants beside those who use them.
    for node in reversed(order):
        if (feeds[node] and len(needs[node]) < len(feeds[node])) or (feeds[node] and not needs[node]):
            layer[node] = max(layer[node], min(layer[target] for target in feeds[node]) - 1)
    used = {number: place for place, number in enumerate(sorted(set(layer)))}
    return [used[number] for number in layer]


def order_layers(ranked: Ranked) -> list[list[int]]:
    """Orders each layer so that few edges cross: barycenter sweeps, the best of them kept."""
    layers = _first_order(ranked)
    position = [0] * ranked.vertices
    for layer in layers:
        for place, vertex in enumerate(layer):
            position[vertex] = place
    best, fewest = [list(layer) for layer in layers], _crossings(ranked, layers, position)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        neighbours = ranked.above if downwards else ranked.below
        for layer in layers if downwards else reversed(layers):
            center = {
                vertex: sum(position[n] for n in neighbours[vertex]) / len(neighbours[vertex])
                if neighbours[vertex]
                else float(position[vertex])
                for vertex in layer
            }
            layer.sort(key=center.__getitem__)
            for place, vertex in enumerate(layer):
                position[vertex] = place
        found = _crossings(ranked, layers, position)
        if found < fewest:
            best, fewest = [list(layer) for layer in layers], found
    return best


def _first_order(ranked: Ranked) -> list[list[int]]:
    """Vertices in the order in which a walk along the edges meets them, so that branches stay together."""
    layers: list[list[int]] = [[] for _ in range(max(ranked.layer) + 1)]
    seen = [False] * ranked.vertices
    for root in sorted(range(ranked.vertices), key=lambda vertex: (ranked.layer[vertex], vertex)):
        waiting = [root]
        while waiting:
            vertex = waiting.pop()
            if not seen[vertex]:
                seen[vertex] = True
                layers[ranked.layer[vertex]].append(vertex)
                waiting += reversed(ranked.below[vertex])
    return layers


def _crossings(ranked: Ranked, layers: Sequence[Sequence[int]], position: Sequence[int]) -> int:
    total = 0
    for layer in layers:
        passed: list[int] = []
        for vertex in layer:
            ends = sorted(position[lower] for lower in ranked.below[vertex])
            total += sum(len(passed) - bisect_right(passed, end) for end in ends)
            for end in ends:
                insort(passed, end)
    return total


def spread(ranked: Ranked, layers: Sequence[Sequence[int]], widths: Sequence[float]) -> list[float]:
    """Horizontal centers: near the neighbours', in the layer's order, apart, around a straight spine."""
    xs = [0.0] * ranked.vertices
    for layer in layers:
        at = 0.0
        for vertex in layer:
            xs[vertex] = at + widths[vertex] / 2
            at += widths[vertex] + _GAP
        for vertex in layer:
            xs[vertex] -= at / 2
    spine = _spine(ranked, layers)
    both = [[*up, *down] for up, down in zip(ranked.above, ranked.below, strict=True)]
    for sweep in range(_SWEEPS):
        _pull(ranked, layers, widths, xs, ranked.above, spine)
        _pull(ranked, list(reversed(layers)), widths, xs, ranked.below, spine)
        if sweep >= _SWEEPS // 2:
            _pull(ranked, layers, widths, xs, both, spine)
    return xs


def _spine(ranked: Ranked, layers: Sequence[Sequence[int]]) -> frozenset[int]:
    """A way from the lowest layer up as far as it leads, through nodes where it can: it is drawn straight."""
    vertex = min(layers[-1])
    found = [vertex]
    while ranked.above[vertex]:
        vertex = min(ranked.above[vertex])
        found.append(vertex)
    return frozenset(found)


def _pull(
    ranked: Ranked,
    layers: Sequence[Sequence[int]],
    widths: Sequence[float],
    xs: list[float],
    neighbours: Sequence[Sequence[int]],
    spine: frozenset[int],
) -> None:
    for layer in layers:
        wanted, offsets, weights = [], [], []
        offset = 0.0
        for place, vertex in enumerate(layer):
            if place:
                offset += (widths[layer[place - 1]] + widths[vertex]) / 2 + _GAP
            offsets.append(offset)
            is_node = vertex < ranked.nodes
            pulls = [1.0 if n < ranked.nodes or not is_node else _BEND_PULL for n in neighbours[vertex]]
            weight = sum(pulls)
            aim = (
                sum(pull * xs[n] for pull, n in zip(pulls, neighbours[vertex], strict=True)) / weight
                if weight
                else xs[vertex]
            )
            wanted.append((0.0 if vertex in spine else aim) - offset)
            weights.append(_SPINE_MASS if vertex in spine else 1.0 if is_node else _BEND_MASS)
        for vertex, place_x, shift in zip(layer, _rising(wanted, weights), offsets, strict=True):
            xs[vertex] = place_x + shift


def _rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls, by weighted least squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, mass, count = value, weight, 1
        while pools and pools[-1][0] > mean:
            other, other_mass, other_count = pools.pop()
            mean = (mean * mass + other * other_mass) / (mass + other_mass)
            mass += other_mass
            count += other_count
        pools.append((mean, mass, count))
    return [mean for mean, _, count in pools for _ in range(count)]
