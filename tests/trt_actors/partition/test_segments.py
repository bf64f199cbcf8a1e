"""Grouping nodes: convex, complete, in an order that runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trtfleet.trt_actors.partition.segments import group_nodes


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[set[int]], set[int]]:
    """A random directed acyclic graph in topological order, and some of its nodes."""
    size = draw(st.integers(0, 24))
    needs = [draw(st.sets(st.integers(0, node - 1), max_size=4)) if node else set() for node in range(size)]
    return needs, draw(st.sets(st.integers(0, size - 1))) if size else set()


def reachable(needs: list[set[int]], start: int) -> set[int]:
    found, waiting = set(), [start]
    while waiting:
        for source in needs[waiting.pop()] - found:
            found.add(source)
            waiting.append(source)
    return found


@given(graphs())
def test_every_node_is_in_one_group_of_its_kind(graph: tuple[list[set[int]], set[int]]) -> None:
    needs, chosen = graph
    groups = group_nodes(needs, chosen)
    assert sorted(node for group in groups for node in group.nodes) == list(range(len(needs)))
    assert all((node in chosen) == group.chosen for group in groups for node in group.nodes)


@given(graphs())
def test_groups_can_run_one_after_the_other(graph: tuple[list[set[int]], set[int]]) -> None:
    needs, chosen = graph
    done: set[int] = set()
    for group in group_nodes(needs, chosen):
        done |= set(group.nodes)
        assert all(needs[node] <= done for node in group.nodes)


@given(graphs())
def test_no_path_leaves_a_group_and_returns(graph: tuple[list[set[int]], set[int]]) -> None:
    needs, chosen = graph
    for group in group_nodes(needs, chosen):
        members = set(group.nodes)
        outside = {s for node in members for s in reachable(needs, node)} - members
        # Whatever a group needs from outside must not itself need the group.
        assert all(not (reachable(needs, node) & members) for node in outside)


@given(graphs())
def test_neighbouring_groups_differ_in_kind_or_could_not_be_one(
    graph: tuple[list[set[int]], set[int]],
) -> None:
    needs, chosen = graph
    kinds = [group.chosen for group in group_nodes(needs, chosen)]
    longest = [0] * len(needs)
    for node, sources in enumerate(needs):
        longest[node] = max((longest[s] + ((s in chosen) != (node in chosen)) for s in sources), default=0)
    # As many groups as the longest path forces, and at most one more where the path starts with native nodes.
    assert len(kinds) <= max(longest, default=-1) + 2


def test_a_native_node_in_a_branch_does_not_split_the_other_branch() -> None:
    # 0 -> 1 (native) -> 3, 0 -> 2 -> 3: the nodes 0 and 2 run first, 3 needs the native one.
    groups = group_nodes([set(), {0}, {0}, {1, 2}], {0, 2, 3})
    assert [(group.chosen, group.nodes) for group in groups] == [(True, (0, 2)), (False, (1,)), (True, (3,))]


def test_a_graph_without_nodes_has_no_groups() -> None:
    assert group_nodes([], set()) == []
