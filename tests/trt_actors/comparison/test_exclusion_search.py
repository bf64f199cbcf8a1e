"""The search for what to exclude: on made-up losses, and on the digits with absurd ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.tests.trt_actors.comparison.networks import images_of, table_of
from trtfleet.trt_actors.comparison.exclusion_search import Suggestion, find_exclusion
from trtfleet.trt_actors.comparison.outputs import pair_outputs
from trtfleet.trt_actors.comparison.parity import Parity
from trtfleet.trt_actors.comparison.runner import SessionRunner
from trtfleet.trt_actors.comparison.trials import Trials
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.quantization.placement import Site, place
from trtfleet.trt_actors.quantization.source import quantizable

Sites = tuple[Site, ...]


def search(losses: Mapping[str, float], max_drop: float) -> Suggestion:
    """Nodes lose what is said, and together the sum."""
    sites = tuple(Site(node=node, op_type="Conv", input=0, tensor=node) for node in losses)

    def without(nodes: frozenset[str]) -> Sites | None:
        return tuple(site for site in sites if site.node not in nodes) or None

    def measure(selections: Sequence[Sites]) -> list[Parity]:
        assert all(selections)
        return [
            Parity(top1_agreement=None, relative_error=sum(losses[site.node] for site in chosen), rows=9)
            for chosen in selections
        ]

    return find_exclusion(without, measure, max_drop)


def test_nothing_is_excluded_from_what_passes() -> None:
    found = search({"a": 0.1, "b": 0.2}, 0.5)
    assert (found.exclude, found.passes, found.trials, found.flags) == ((), True, 1, ())


def test_the_one_bad_node_is_found() -> None:
    found = search({**{f"n{i}": 0.001 for i in range(20)}, "bad": 0.9}, 0.1)
    assert found.flags == ("--exclude", "bad")
    assert found.contributions[0].node == "bad"
    assert found.after.relative_error < 0.1 < found.before.relative_error


def test_what_cannot_pass_is_said() -> None:
    found = search({"a": 1.0, "b": 1.0}, 0.5)
    assert (found.exclude, found.passes, found.after) == ((), False, found.before)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=12), st.integers(0, 300))
def test_no_member_can_be_dropped(losses: list[int], max_drop: int) -> None:
    by_node = {f"n{i}": float(loss) for i, loss in enumerate(losses)}
    found = search(by_node, max_drop)
    left = sum(losses) - sum(by_node[node] for node in found.exclude)
    if found.passes:
        assert left <= max_drop
        assert all(left + by_node[node] > max_drop for node in found.exclude)
    else:
        # Something has to stay quantized.
        assert min(losses) > max_drop


@pytest.mark.parametrize(
    ("absurd", "wanted"),
    [
        ({}, ()),
        ({"relu1.out": 0.001}, ("conv2",)),
        ({"image": 0.01}, ("conv1",)),
        ({"relu1.out": 0.001, "flatten.out": 0.001}, ("conv2", "fc")),
    ],
)
def test_absurd_ranges_of_the_digits(
    digits: tuple[Path, Path], absurd: Mapping[str, float], wanted: tuple[str, ...]
) -> None:
    model, images = load_model(digits[0]), images_of(digits[1])
    source = quantizable(model.proto)
    table = table_of(model, images, absurd)
    whole = place(source)
    scales = {
        (site.node, site.input): table.tensors[site.tensor].scale
        for site in whole.sites
        if not site.is_weight
    }
    network = prepare(model)
    batches: list[Mapping[str, np.ndarray]] = [{"image": images[:100]}, {"image": images[100:]}]
    pairs = pair_outputs(network.outputs, network.outputs)
    with (
        SessionRunner("onnxruntime-cpu", network) as reference,
        Trials(reference, network, scales, pairs, "onnxruntime-cpu") as trials,
    ):

        def without(nodes: frozenset[str]) -> Sites | None:
            return place(source, tuple(nodes)).sites if len(nodes) < len(whole.nodes) + 1 else None

        def measure(selections: Sequence[Sites]) -> list[Parity]:
            return [Parity.of(trials.run(sites, "unit", iter(batches))) for sites in selections]

        found = find_exclusion(without, measure, 0.02)
    assert found.passes
    assert sorted(found.exclude) == sorted(wanted)
