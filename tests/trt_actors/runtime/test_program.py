"""A network's segments as files, and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.errors import ModelError
from trtfleet.trt_actors.runtime.program import NetworkProgram, SegmentProgram, read_order

NAMES = st.lists(st.text(min_size=1), max_size=3).map(tuple)
SEGMENTS = st.builds(
    lambda plan, **rest: SegmentProgram(kind="native" if plan is None else "tensorrt", plan=plan, **rest),
    plan=st.none() | st.binary(),
    inputs=NAMES,
    outputs=NAMES,
    onnx=st.binary(),
)
PROGRAMS = st.builds(NetworkProgram, segments=st.lists(SEGMENTS, min_size=1, max_size=4).map(tuple))


def segment(inputs: str, outputs: str) -> SegmentProgram:
    return SegmentProgram(
        kind="native", inputs=tuple(inputs.split()), outputs=tuple(outputs.split()), onnx=b""
    )


@given(program=PROGRAMS)
def test_files_give_the_same_program_back(program: NetworkProgram) -> None:
    files = program.to_files()
    assert NetworkProgram.from_files(files.__getitem__) == program
    assert files == program.to_files()


def test_files_have_names_that_need_no_quoting() -> None:
    native = SegmentProgram(kind="native", inputs=("../x",), outputs=("y",), onnx=b"o")
    planned = SegmentProgram(kind="tensorrt", inputs=("y",), outputs=("z",), onnx=b"o", plan=b"p")
    files = NetworkProgram(segments=(native, planned)).to_files()
    assert list(files) == ["program.json", "segment-000.onnx", "segment-001.onnx", "segment-001.plan"]


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "program.json is malformed"),
        (b"[]", "program.json is malformed: TypeError"),
        (b"{}", "program.json is malformed: KeyError 'layout'"),
        (b'{"layout": 99}', "program.json has layout 99, this version reads 1"),
        (b'{"layout": 1, "segments": [{"kind": "magic"}]}', "kind 'magic' is unknown"),
    ],
)
def test_a_malformed_index_is_refused(index: bytes, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        NetworkProgram.from_files({"program.json": index}.__getitem__)


def test_a_plan_belongs_to_a_tensorrt_segment() -> None:
    with pytest.raises(ModelError, match="a native segment has a plan"):
        SegmentProgram(kind="native", inputs=(), outputs=(), onnx=b"", plan=b"p")
    with pytest.raises(ModelError, match="a tensorrt segment has no plan"):
        SegmentProgram(kind="tensorrt", inputs=(), outputs=(), onnx=b"")


def test_the_index_alone_names_no_files() -> None:
    files = NetworkProgram(segments=(segment("x", "y"),)).to_files()
    assert "segment" not in json.dumps(json.loads(files["program.json"])["segments"][0])


def test_values_are_dropped_after_their_last_reader() -> None:
    segments = [segment("x", "a unused"), segment("a", "b"), segment("a x", "c"), segment("b c", "y")]
    drops = read_order(segments, ["x"], ["y", "b"])
    assert list(map(set, drops)) == [{"unused"}, set(), {"a", "x"}, {"c"}]


def test_a_value_made_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="segment 1 makes 'a' once more"):
        read_order([segment("x", "a"), segment("x", "a")], ["x"], ["a"])
