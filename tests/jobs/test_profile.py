"""Traces as files: the Trace Event Format, and that a pipeline's trace shows its stages overlapping."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.parts import PartWriter
from trtfleet.datasets.signature import TensorSpec
from trtfleet.datasets.storage import Storage
from trtfleet.errors import OutputError
from trtfleet.jobs.profile import check_trace_path, trace_document, write_trace
from trtfleet.trt_actors.onnxruntime_engine import OnnxRuntimeEngine
from trtfleet.trt_actors.pipeline import Pipeline
from trtfleet.trt_actors.trace import TraceEvent, Tracer


def complete(name: str, start_s: float, duration_s: float, track: str = "engine", **args: Any) -> TraceEvent:
    return TraceEvent("X", name, "", track, start_s, duration_s, args)


def of_phase(document: Mapping[str, Any], phase: str) -> list[dict[str, Any]]:
    return [event for event in document["traceEvents"] if event["ph"] == phase]


def threads(document: Mapping[str, Any]) -> dict[int, str]:
    """Names of threads by their number."""
    named = [event for event in of_phase(document, "M") if event["name"] == "thread_name"]
    return {event["tid"]: event["args"]["name"] for event in named}


def check_format(document: Mapping[str, Any]) -> None:
    """What the Trace Event Format asks of every event used here."""
    assert document["displayTimeUnit"] in ("ms", "ns")
    assert isinstance(document["otherData"], dict)
    names = threads(document)
    for event in document["traceEvents"]:
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert isinstance(event["args"], dict)
        match event["ph"]:
            case "X":
                assert set(event) == {"ph", "name", "cat", "pid", "tid", "ts", "dur", "args"}
                assert event["cat"]
                assert event["tid"] in names
                assert event["ts"] >= 0
                assert event["dur"] >= 0
            case "C":
                assert set(event) == {"ph", "name", "pid", "tid", "ts", "args"}
                assert event["ts"] >= 0
                assert all(isinstance(value, int | float) for value in event["args"].values())
            case phase:
                assert phase == "M"
                assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
    assert len(set(names.values())) == len(names)
    check_nesting(document)


def check_nesting(document: Mapping[str, Any]) -> None:
    """Complete events of a thread nest or are disjoint, in the nanoseconds that viewers compute with."""
    by_thread = defaultdict(list)
    for event in of_phase(document, "X"):
        start_ns = round(event["ts"] * 1000)
        by_thread[event["tid"]].append((start_ns, start_ns + round(event["dur"] * 1000)))
    for spans in by_thread.values():
        ends: list[int] = []
        for start_ns, end_ns in spans:
            while ends and ends[-1] <= start_ns:
                ends.pop()
            assert not ends or end_ns <= ends[-1]
            ends.append(end_ns)


def test_events_become_the_documented_fields() -> None:
    counter = TraceEvent("C", "free slots", "", "", 11.0, 0.0, {"value": 3})
    events = [TraceEvent("X", "read", "reading", "reader_0", 10.5, 0.25, {"rows": 7}), counter]
    document = trace_document("actor-0", events, dropped=2, pid=77, facts={"model": "m.onnx"})
    check_format(document)
    assert document["displayTimeUnit"] == "ms"
    assert document["otherData"] == {"actor": "actor-0", "dropped_events": 2, "model": "m.onnx"}
    assert of_phase(document, "X") == [
        {
            "ph": "X",
            "name": "read",
            "cat": "reading",
            "pid": 77,
            "tid": 1,
            "ts": 0.0,
            "dur": 250_000.0,
            "args": {"rows": 7},
        }
    ]
    assert of_phase(document, "C") == [
        {"ph": "C", "name": "free slots", "pid": 77, "tid": 0, "ts": 500_000.0, "args": {"value": 3}}
    ]
    assert of_phase(document, "M") == [
        {"ph": "M", "name": "process_name", "pid": 77, "tid": 0, "args": {"name": "actor-0"}},
        {"ph": "M", "name": "thread_name", "pid": 77, "tid": 1, "args": {"name": "reader_0"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 77, "tid": 1, "args": {"sort_index": 1}},
    ]


def test_tracks_are_listed_in_the_order_of_a_rows_way() -> None:
    names = [
        "writer",
        "D2H",
        "other",
        "engine",
        "reader_10",
        "H2D",
        "reader_2",
        "compute",
        "feeder",
        "decoder_0",
    ]
    document = trace_document("a", [complete("x", 0.0, 1.0, name) for name in names])
    assert list(threads(document).values()) == [
        *(
            "reader_2",
            "reader_10",
            "decoder_0",
            "feeder",
            "engine",
            "H2D",
            "compute",
            "D2H",
            "writer",
            "other",
        )
    ]


def test_nested_events_share_a_line_and_crossing_ones_do_not() -> None:
    events = [
        complete("outer", 0.0, 10.0),
        complete("inner", 2.0, 3.0),
        complete("crossing", 8.0, 4.0),
        complete("after", 12.0, 1.0),
    ]
    document = trace_document("a", events)
    check_format(document)
    lines = {event["name"]: threads(document)[event["tid"]] for event in of_phase(document, "X")}
    assert lines == {"outer": "engine", "inner": "engine", "crossing": "engine (2)", "after": "engine"}


def test_an_overlap_below_a_devices_clock_is_none() -> None:
    document = trace_document("a", [complete("one", 0.0, 1.0001, "H2D"), complete("two", 1.0, 1.0, "H2D")])
    check_format(document)
    assert list(threads(document).values()) == ["H2D"]
    assert [event["dur"] for event in of_phase(document, "X")] == [1_000_000, 1_000_000]


@given(
    st.lists(
        st.builds(
            complete,
            st.sampled_from(["read", "copy"]),
            st.floats(-1e5, 1e5) | st.integers(0, 5).map(lambda n: n * 1e-4),
            st.floats(0, 10) | st.integers(0, 5).map(lambda n: n * 1e-4),
            st.sampled_from(["reader_0", "engine", "H2D"]),
        ),
        max_size=30,
    )
)
def test_whatever_overlaps_the_file_nests(events: list[TraceEvent]) -> None:
    document = trace_document("a", events)
    check_format(document)
    assert len(of_phase(document, "X")) == len(events)


def test_numbers_of_other_libraries_and_odd_values_stay_readable() -> None:
    details = {"rows": np.int64(3), "ratio": np.float32(0.5), "nan": float("nan"), "shape": (1, np.int8(2))}
    (event,) = of_phase(trace_document("a", [complete("x", 0.0, 0.0, **details, dtype=np.dtype("u1"))]), "X")
    assert json.loads(json.dumps(event["args"], allow_nan=False)) == {
        "rows": 3,
        "ratio": 0.5,
        "nan": "nan",
        "shape": [1, 2],
        "dtype": "uint8",
    }


def test_a_trace_without_events_is_a_valid_file(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", "actor-0", ())
    check_format(json.loads((tmp_path / "t.json").read_text()))


def test_names_in_any_script_are_written(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", "actor é", [complete('quote " \u2028 \ud800', 0.0, 1.0)])
    document = json.loads((tmp_path / "t.json").read_text())
    assert of_phase(document, "X")[0]["name"] == 'quote " \u2028 \ud800'
    assert document["otherData"]["actor"] == "actor é"


def test_the_answer_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    said = write_trace(path, "actor-0", [complete("x", 0.0, 1.0)], dropped=1200)
    assert f"1 events, 1,200 earlier ones were dropped in {path}" in said
    assert "dropped" not in write_trace(path, "actor-0", [])


def test_a_trace_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text("older")
    link = tmp_path / "link.json"
    link.symlink_to(path)
    write_trace(link, "actor-0", [complete("x", 0.0, 1.0)])
    assert of_phase(json.loads(path.read_text()), "X")[0]["name"] == "x"
    assert sorted(tmp_path.iterdir()) == [link, path]
    assert link.is_symlink()


def test_a_failed_write_leaves_the_older_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    path.write_text("older")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trtfleet.jobs.profile.os.replace", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_trace(path, "actor-0", [])
    assert caught.value.hint == "free some space there"
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["older"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/t.json", "there is no folder"),
        ("file/t.json", "there is no folder"),
        ("folder", "it is not a file"),
        ("s3://bucket/t.json", "on this machine alone"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for refuse in (check_trace_path, lambda path: write_trace(path, "actor-0", [])):
        with pytest.raises(OutputError, match=reason) as caught:
            refuse(name)
        assert name in caught.value.fact
        assert caught.value.hint


def test_a_bare_file_name_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_trace_path("t.json")
    assert list(tmp_path.iterdir()) == []


class Traced:
    """An engine whose executions are spans; in one of them it meets the other stages."""

    def __init__(self, engine: OnnxRuntimeEngine, tracer: Tracer, meet: Callable[[int], None]) -> None:
        self._engine = engine
        self._tracer = tracer
        self._meet = meet
        self._batches = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def enqueue(self, slot: Any, rows: int) -> None:
        with self._tracer.span("execute", "executing", rows=rows):
            self._meet(self._batches)
            self._batches += 1
            self._engine.enqueue(slot, rows)


def run_traced(
    model: Path, data: Path, out: Path, tracer: Tracer, meet: Sequence[Callable[[int], None]]
) -> int:
    """Reads row groups, executes and writes them, each stage on its own thread; returns the rows written."""
    spec = [TensorSpec(name=n, dtype=np.dtype("f4"), row_shape=(w,)) for n, w in (("x", 4), ("y", 2))]
    engine = OnnxRuntimeEngine(model.read_bytes(), inputs=(spec[0],), outputs=(spec[1],)).open()
    traced: Any = Traced(engine, tracer, meet[1])
    pipeline = Pipeline(traced, 4)
    part = PartWriter(Storage(out), "part.parquet", "none")
    written = count()
    # A full batch never comes, so that each is executed once.
    pipeline.begin(1_000_000)

    def read(group: int) -> np.ndarray:
        with tracer.span("read", "reading", group=group):
            meet[0](group)
            with pq.ParquetFile(data) as file:
                column = file.read_row_group(group, ["x"], use_threads=False).column("x").combine_chunks()
            return np.asarray(column.flatten()).reshape(-1, 4)

    def deliver(outputs: Mapping[str, np.ndarray] | None, error: BaseException | None) -> None:
        with tracer.span("write", "writing"):
            meet[2](next(written))
            if outputs is not None:
                part.write(pa.RecordBatch.from_arrays([pa.array(outputs["y"][:, 0].copy())], ["y"]))

    with ThreadPoolExecutor(1, "reader") as readers:
        for rows in readers.map(read, range(pq.read_metadata(data).num_row_groups)):
            slot = pipeline.acquire()
            slot.bind("x", rows)
            tracer.counter("batches submitted", 1)
            pipeline.submit(slot, len(rows), deliver)
    pipeline.end()
    pipeline.close()
    engine.close()
    closed = part.close()
    return closed.rows if closed else 0


def test_the_trace_of_a_pipeline_shows_its_stages_at_work_at_once(
    tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    # While row group 5 is read, batch 3 executes and batch 0 is written: each stage waits for the others.
    together = threading.Barrier(3)

    def at(batch: int) -> Callable[[int], None]:
        return lambda number: bool(together.wait(60)) if number == batch else None

    tracer = Tracer()
    rows = run_traced(linear_model(), vectors(rows=800), tmp_path / "out", tracer, [at(5), at(3), at(0)])
    assert rows == 800
    path = tmp_path / "trace.json"
    write_trace(path, "actor-0", tracer.events(), dropped=tracer.dropped, pid=1)
    document = json.loads(path.read_text())
    check_format(document)
    by_name = defaultdict(list)
    for event in of_phase(document, "X"):
        by_name[event["name"]].append(event)
    assert {name: len(events) for name, events in by_name.items()} == {"read": 8, "execute": 8, "write": 8}
    assert sorted(threads(document).values()) == ["engine", "reader_0", "writer"]
    met = by_name["read"][5], by_name["execute"][3], by_name["write"][0]
    assert max(event["ts"] for event in met) < min(event["ts"] + event["dur"] for event in met)
    for events in by_name.values():
        assert all(one["ts"] + one["dur"] <= two["ts"] + 1e-3 for one, two in pairwise(events))
    assert len(of_phase(document, "C")) == 8
