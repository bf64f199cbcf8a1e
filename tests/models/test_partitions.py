"""How TensorRT's parser and builder take the zoo, and that cutting a network changes no result."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from trtfleet.tests.models.document import Record, document, facts, native_lines
from trtfleet.tests.models.running import run_model, run_partition
from trtfleet.tests.models.selection import parameters
from trtfleet.tests.models.zoo import ZOO, image, load, names
from trtfleet.trt_actors.building.builder import BuiltPlan, build_plan
from trtfleet.trt_actors.building.flavour import Flavour, find_flavour
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.building.profiles import ShapeBook, input_profiles
from trtfleet.trt_actors.partition.partition import Partition
from trtfleet.trt_actors.partition.partitioner import partition_model
from trtfleet.trt_actors.partition.support import ParserProcess

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
OPTIONS = BuildOptions(max_batch_size=8)
MOST_SEGMENTS = 8
LEAST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and how it was cut."""

    name: str
    model: onnx.ModelProto
    partition: Partition
    seconds: float


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return find_flavour("tensorrt-rtx")


@pytest.fixture(scope="module")
def parser(flavour: Flavour) -> Iterator[ParserProcess]:
    with ParserProcess(flavour.name) as process:
        yield process


@pytest.fixture(scope="module")
def records(flavour: Flavour) -> Iterator[dict[str, Record]]:
    """What is found of each network; written down at the end when that is asked for."""
    found: dict[str, Record] = {}
    yield found
    if os.environ.get("TRTFLEET_WRITE_DOCS"):
        assert found.keys() == set(names()), "the document tells of all networks: run all, with --slow"
        DOCUMENT.write_text(document(str(flavour), {name: found[name] for name in names()}))


@pytest.fixture(scope="module", params=parameters())
def case(request: pytest.FixtureRequest, parser: ParserProcess, flavour: Flavour) -> Case:
    """One network, cut once for all tests; only one is in memory at a time."""
    model = load(request.param)
    start_s, asked = time.perf_counter(), parser.questions
    partition = partition_model(model, parser, flavour=str(flavour))
    took_s = time.perf_counter() - start_s
    print(f"\n{request.param}: cut in {took_s:.1f} s, {parser.questions - asked} questions")
    print("\n".join(partition.lines()))
    return Case(name=request.param, model=model, partition=partition, seconds=took_s)


@pytest.fixture(scope="module")
def answers(case: Case) -> dict[str, np.ndarray]:
    """What the network as a whole gives for one image."""
    return run_model(case.model, image(case.name))


@pytest.fixture(scope="module")
def plans(case: Case, flavour: Flavour, records: dict[str, Record]) -> dict[str, BuiltPlan]:
    """The plans of all TensorRT segments of a network."""
    partition = case.partition
    book = ShapeBook(partition, input_profiles(partition.cleaned, OPTIONS), OPTIONS)
    built = {
        segment.name: build_plan(
            flavour, partition.model_of(segment).SerializeToString(), OPTIONS, book.of(segment)
        )
        for segment in partition.tensorrt
    }
    took_s = sum(plan.seconds for plan in built.values())
    print(f"{case.name}: built in {took_s:.1f} s, {sum(len(plan.plan) for plan in built.values()):,} bytes")
    records[case.name] = Record(partition=partition, partition_s=case.seconds, build_s=took_s)
    return built


def test_a_network_runs_with_sane_activations(case: Case, answers: dict[str, np.ndarray]) -> None:
    entry = ZOO[case.name]
    onnx.checker.check_model(case.model)
    initialized = {tensor.name for tensor in case.model.graph.initializer}
    (given_input,) = [value for value in case.model.graph.input if value.name not in initialized]
    dims = given_input.type.tensor_type.shape.dim
    assert (given_input.name, tuple(d.dim_param or d.dim_value for d in dims)) == (entry.input, entry.shape)
    for output, values in answers.items():
        assert values.size > 0, output
        assert np.isfinite(values).all(), output
        assert np.abs(values).max() < 1e4, output
        if entry.family != "detection" and not case.name.startswith("light_"):
            # Neither vanished nor all the same: a comparison of results would then mean nothing.
            assert values.std() > 1e-3, output


def test_tensorrt_takes_what_the_network_is_for(case: Case) -> None:
    partition = case.partition
    assert sum(segment.multiply_adds for segment in partition.segments) > 1e8
    if ZOO[case.name].family == "detection":
        assert partition.multiply_add_share >= LEAST_SHARE
        assert len(partition.tensorrt) <= MOST_SEGMENTS
    else:
        assert partition.is_whole
        assert len(partition.tensorrt[0].nodes) == len(partition.cleaned.graph.node)
    assert all(node.reason for node in partition.native)


def test_segments_hold_every_node_once(case: Case) -> None:
    segments = case.partition.segments
    nodes = [index for segment in segments for index in segment.nodes]
    assert sorted(nodes) == list(range(len(case.partition.cleaned.graph.node)))
    native = {index for segment in segments if segment.kind == "native" for index in segment.nodes}
    assert {node.index for node in case.partition.native} == native


def test_every_segment_is_a_valid_model(case: Case) -> None:
    for segment in case.partition.segments:
        onnx.checker.check_model(case.partition.model_of(segment))


def test_every_tensorrt_segment_builds(case: Case, plans: dict[str, BuiltPlan]) -> None:
    assert list(plans) == [segment.name for segment in case.partition.tensorrt]
    for plan in plans.values():
        assert plan.plan
        assert set(plan.types) == {"FLOAT"}


def test_segments_one_after_the_other_give_the_results_of_the_whole(
    case: Case, answers: dict[str, np.ndarray]
) -> None:
    """Cutting alone must change no bit; cleaning folds constants, which rounds differently.

    The cleaned network differs from the original where a batch norm became part of the convolution before it:
    one rounding of float32 (6e-8) in each of some hundred layers, independent of one another, so about 1e-6
    of the largest value; 1e-4 leaves room for networks whose layers amplify it. Detectors choose boxes by
    comparing scores, but their files have no batch norm left to fold: the choices are the same.
    """
    feeds = image(case.name)
    parts = run_partition(case.partition, feeds)
    assert parts.keys() == answers.keys()
    for name, values in parts.items():
        assert values.shape == answers[name].shape
        largest = np.abs(answers[name]).max(initial=0)
        np.testing.assert_allclose(values, answers[name], rtol=0, atol=1e-4 * largest, err_msg=name)
    if not case.partition.is_whole:
        for name, values in run_model(case.partition.cleaned, feeds).items():
            np.testing.assert_array_equal(parts[name], values, err_msg=name)


def test_the_document_tells_of_it(case: Case, plans: dict[str, BuiltPlan]) -> None:
    assert plans
    if os.environ.get("TRTFLEET_WRITE_DOCS"):
        pytest.skip("the document is being written")
    text = DOCUMENT.read_text()
    assert f"| {ZOO[case.name].title} |" in text
    if f" {case.partition.flavour}." in text:
        # Another version of TensorRT may take more, and say why not in other words.
        assert facts(case.name, case.partition) in text
        assert [line for line in native_lines(case.partition) if line not in text] == []
