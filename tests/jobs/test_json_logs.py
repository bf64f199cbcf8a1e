"""The log in JSON of whole jobs: every line of standard error is an event, and actors write theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from trtfleet.errors import ClusterError, InternalError, UsageError
from trtfleet.jobs import calibrate as calibrate_job
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.jobs.compare_spec import CompareSpec
from trtfleet.jobs.progress import JsonLines, Snapshot, telling_failure
from trtfleet.jobs.reporting import reporting
from trtfleet.jobs.sweep.spec import SweepSpec
from trtfleet.tests.jobs.conftest import Ran

Event = dict[str, Any]


def events_of(text: str) -> list[Event]:
    """Every line, each of which must be an event of ours."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert list(event)[:3] == ["time", "level", "event"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    return events


def named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event["event"] == name]


def of_actors(run: str) -> list[Event]:
    """What the actors of a run wrote to Ray's logs of this machine."""
    import ray

    context = ray.get_runtime_context()
    logs = Path(context.get_temp_dir(), context.get_session_name(), "logs")
    lines = [line for path in logs.glob("worker-*.err") for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.startswith('{"time"') and f'"run": "{run}"' in line]


def run_of(events: list[Event], job: str) -> str:
    """The name of the one run, which all lines from its start on have."""
    (started,) = named(events, "run_started")
    assert started["job"] == job
    assert {event.get("run") for event in events[events.index(started) :]} == {started["run"]}
    assert not any("run" in event for event in events[: events.index(started)])
    return str(started["run"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an empty engine cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.usefixtures("ray_session", "place")
class TestJobs:
    def check_units(self, events: list[Event], job: str, rows: int) -> None:
        """What all jobs over a sample tell of their units and actors."""
        run = run_of(events, job)
        (started,), done = named(events, "run_started"), named(events, "unit_done")
        assert len(done) == started["units"] > 1
        assert sum(event["rows"] for event in done) == rows
        assert {event["actor"] for event in done} <= {
            event["actor"] for event in named(events, "actor_ready")
        }
        for event in (*done, *named(events, "actor_ready")):
            assert {"actor", "node", "pid", "seconds"} <= event.keys()
        told = of_actors(run)
        assert {event["event"] for event in told} == {"engine_ready", "attempt_started", "attempt_done"}
        assert {event["unit"] for event in told if "unit" in event} == {event["unit"] for event in done}
        assert {(event["node"], event["pid"]) for event in told} >= {
            (event["node"], event["pid"]) for event in done
        }

    def test_a_calibration(self, digits: tuple[Path, Path], command: Callable[..., Ran]) -> None:
        options = ["--samples", "600", "--batch-size", "16", "--actors", "1", "--normalize", "0:16"]
        ran = command("calibrate", *digits, "-o", "t.json", *options, "--log-format", "json")
        assert ran.code == 0, ran.stderr
        events = events_of(ran.stderr)
        assert [events[0]["event"], events[-1]["event"]] == ["job_planned", "run_finished"]
        assert (events[0]["job"], events[0]["samples"], events[0]["rows"]) == ("calibrate", 600, 1797)
        self.check_units(events, "calibrate", 600)
        assert [event["place"] for event in named(events, "report_written")] == ["t.html"]
        end = events[-1]
        assert (end["rows"], end["bad_rows"], end["table"], end["failures"]) == (600, 0, "t.json", 0)
        assert Path(end["stored"]).read_bytes() == Path("t.json").read_bytes()

    def test_a_comparison(self, digits: tuple[Path, Path], command: Callable[..., Ran]) -> None:
        model, data = digits
        words = ["compare", model, model, data, "--precision-b", "fp16", "--samples", "600", "--actors", "1"]
        words += ["--batch-size", "16", "--normalize", "0:16", "--log-format", "json"]
        ran = command(*words, "--max-drop", "0.5")
        assert ran.code == 0, ran.stderr
        events = events_of(ran.stderr)
        assert [events[0]["event"], events[-1]["event"]] == ["job_planned", "run_finished"]
        self.check_units(events, "compare", 600)
        assert (events[-1]["rows"], events[-1]["max_drop"], events[-1]["drop"]) == (600, 0.5, 0.0)

    def test_a_search_for_what_to_exclude(
        self, digits: tuple[Path, Path], command: Callable[..., Ran]
    ) -> None:
        model, data = digits
        sampled = ["--normalize", "0:16", "--samples", "64", "--actors", "1", "--log-format", "json"]
        assert command("calibrate", model, data, *sampled).code == 0
        ran = command("compare", model, model, data, *sampled, "--precision-b", "int8", "--suggest-exclude")
        assert ran.code == 0, ran.stderr
        events = events_of(ran.stderr)
        run_of(events, "compare")
        ready = [event["actor"] for event in named(events, "actor_ready")]
        assert ready == ["actor-0001", "search/actor-0001"]
        assert isinstance(events[-1]["exclude"], list)

    def test_networks_that_differ_too_much_are_a_failure_of_the_run(
        self, digits: tuple[Path, Path], place: Path, command: Callable[..., Ran]
    ) -> None:
        model, data = digits
        proto = onnx.load(model)
        last = next(node for node in proto.graph.node if proto.graph.output[0].name in node.output)
        last.output[0] = "before"
        proto.graph.node.append(helper.make_node("Neg", ["before"], [proto.graph.output[0].name]))
        onnx.save(proto, place / "other.onnx")
        words = ["compare", model, "other.onnx", data, "--samples", "40", "--actors", "1"]
        ran = command(*words, "--max-drop", "0.1", "--log-format", "json", "--json")
        assert ran.code == 17
        events = events_of(ran.stderr)
        run_of(events, "compare")
        assert [event["event"] for event in events[-2:]] == ["run_finished", "run_failed"]
        assert (events[-1]["error"], events[-1]["exit_code"]) == ("ParityError", 17)
        assert json.loads(ran.stdout)["drop"] == events[-2]["drop"] > 0.1

    def test_a_sweep(self, linear_model: Callable[..., Path], command: Callable[..., Ran]) -> None:
        flags = ["--batch-sizes", "1,4,8", "--runs", "10", "--seconds", "0.02", "--warm-up", "0.1"]
        flags += ["--cpus-per-actor", "1", "--repeats", "1", "--mode", "latency", "--log-format", "json"]
        model = linear_model(batch=4)
        ran = command("sweep", model, "-o", "out", *flags, "--backends", "onnxruntime-cpu,tensorrt")
        assert ran.code == 0, ran.stderr
        events = events_of(ran.stderr)
        assert [events[0]["event"], events[-1]["event"]] == ["job_planned", "run_finished"]
        run = run_of(events, "sweep")
        (started,), done = named(events, "run_started"), named(events, "trial_done")
        assert (started["trials"], started["measurements_before"]) == (6, 0)
        assert [(event["batch_size"], event["done"]) for event in done] == [(1, 1), (4, 2)]
        assert all(event["host_p50_ms"] > 0 and {"actor", "node", "pid"} <= event.keys() for event in done)
        aside = {reason["reason"]: len(reason["trials"]) for reason in named(events, "trials_set_aside")}
        assert aside.pop("the cluster has no GPU, which tensorrt needs") in (2, 3)
        assert list(aside) == ["batch size 8 exceeds the model's fixed batch size 4"]
        assert (events[-1]["trials"], events[-1]["failed"]) == (6, 4)
        told = of_actors(run)
        assert {event["event"] for event in told} == {"host_ready", "attempt_started", "attempt_done"}
        assert {event["trial"] for event in told if "trial" in event} == {event["trial"] for event in done}

    def test_a_calibration_within_a_scoring_job(
        self, digits: tuple[Path, Path], command: Callable[..., Ran]
    ) -> None:
        words = ["score", *digits, "out", "--normalize", "0:16", "--precision", "int8", "--use-calib-mode"]
        ran = command(*words, "--max-drop", "0.1", "--actors", "1", "--log-format", "json")
        assert ran.code == 0, ran.stderr
        events = events_of(ran.stderr)
        planned = [event.get("job") for event in named(events, "job_planned")]
        started = [event["run"] for event in named(events, "run_started")]
        assert planned == ["calibrate", None]
        assert len(set(started)) == 2
        assert [event["run"] for event in named(events, "run_finished")] == started
        for run, piece in zip(started, ("unit", "shard"), strict=True):
            assert {event["run"] for event in named(events, f"{piece}_done")} == {run}
            assert any(piece in event for event in of_actors(run))

    def test_an_attempt_that_fails_and_the_run_with_it(
        self, place: Path, command: Callable[..., Ran]
    ) -> None:
        values = np.ones((64, 4), np.float32)
        values[43] = np.nan
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
        pq.write_table(pa.table({"x": lists}), place / "x.parquet")
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8)
        shapes = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
            for name, size in (("x", 4), ("y", 2))
        ]
        graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], [weights])
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), place / "m.onnx")
        ran = command("calibrate", "m.onnx", "x.parquet", "--actors", "1", "--log-format", "json")
        assert ran.code == 16
        events = events_of(ran.stderr)
        run = run_of(events, "calibrate")
        failure, last = events[-2], events[-1]
        assert (failure["event"], last["event"], last["exit_code"]) == ("failure", "run_failed", 16)
        assert "NaN or infinite" in failure["reason"]
        assert failure["reason"] == last["reason"]
        (failed,) = named(of_actors(run), "attempt_failed")
        assert (failed["unit"], failed["error"]) == (failure["unit"], "CalibrationError")


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "code", "reason"),
        [
            (["calibrate", "no.onnx", "no.parquet"], 3, "no.onnx"),
            (["compare", "no.onnx", "other.onnx", "no.parquet"], 3, "no.onnx"),
            (["sweep", "no.onnx", "-o", "out"], 3, "no.onnx"),
            (["sweep", "no.onnx", "-o", "out", "--batch-sizes", "0"], 2, "batch_sizes must be >= 1"),
            (["calibrate", "no.onnx", "no.parquet", "--samples", "0"], 2, "samples must be >= 1"),
        ],
    )
    def test_are_one_line_and_the_exit_code(
        self, place: Path, command: Callable[..., Ran], words: list[str], code: int, reason: str
    ) -> None:
        ran = command(*words, "--log-format", "json")
        (event,) = events_of(ran.stderr)
        assert (ran.code, ran.stdout) == (code, "")
        assert (event["event"], event["level"], event["exit_code"]) == ("run_failed", "error", code)
        assert reason in event["reason"]

    def test_a_defect_of_ours_is_one_line_too(
        self, place: Path, command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("of\nall things")

        monkeypatch.setattr(calibrate_job, "make_calibrate_plan", broken)
        ran = command("calibrate", "m.onnx", "x.parquet", "--log-format", "json")
        (event,) = events_of(ran.stderr)
        assert (ran.code, event["exit_code"], event["error"]) == (70, 70, InternalError.__name__)
        assert event["reason"] == "ZeroDivisionError: of all things"

    def test_an_interrupt_is_one_line_too(
        self, place: Path, command: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(calibrate_job, "make_calibrate_plan", interrupted)
        ran = command("calibrate", "m.onnx", "x.parquet", "--log-format", "json")
        assert ran.code == 130
        assert [event["event"] for event in events_of(ran.stderr)] == ["run_stopped"]

    def test_another_format_is_refused_by_every_job(self) -> None:
        for spec, values in (
            (CalibrateSpec, {"model": "m", "data": "d"}),
            (CompareSpec, {"model_a": "a", "model_b": "b", "data": "d"}),
            (SweepSpec, {"models": "m", "out": "o"}),
        ):
            with pytest.raises(UsageError, match="log_format must be one of text, json, got 'xml'"):
                spec.of({**values, "log_format": "xml"})


def failing_job(reporter: JsonLines | None, log_format: str) -> None:
    """A job that says something and fails."""
    with reporting(reporter, log_format) as shown:
        shown.say("so far so good")
        raise ClusterError("no cluster", "start one")


class TestReporting:
    def test_without_a_reporter_the_log_tells_of_the_failure(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ClusterError):
            failing_job(None, "json")
        assert [event["event"] for event in events_of(capfd.readouterr().err)] == ["note", "run_failed"]

    def test_without_either_nobody_is_told(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(ClusterError):
            failing_job(None, "text")
        assert capfd.readouterr() == ("", "")

    def test_whoever_brought_the_reporter_tells_of_the_failure_himself(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        log = JsonLines()
        with pytest.raises(ClusterError), telling_failure(log):
            failing_job(log, "json")
        assert [event["event"] for event in events_of(capfd.readouterr().err)] == ["note", "run_failed"]

    def test_a_job_within_a_job_keeps_its_run_for_itself(self, capfd: pytest.CaptureFixture[str]) -> None:
        log = JsonLines()
        for run in ("inner", "outer"):
            log.tell("job_planned")
            log.tell("run_started", run=run)
            log.tell("run_finished")
        found = [event.get("run") for event in events_of(capfd.readouterr().err)]
        assert found == [None, "inner", "inner", None, "outer", "outer"]

    def test_pieces_have_the_name_that_the_job_has_for_them(self) -> None:
        counts = dict.fromkeys(("rows_planned", "rows_passed", "rows_written", "bad_rows", "failures"), 0)
        snapshot = Snapshot(**counts, shards_done=1, shards_total=2, actors=3, rows_per_s=4.0, pieces="units")
        facts = snapshot.as_facts()
        assert (facts["units_done"], facts["units_total"], facts["actors"]) == (1, 2, 3)
        assert not [name for name in facts if "shard" in name or name == "pieces"]
