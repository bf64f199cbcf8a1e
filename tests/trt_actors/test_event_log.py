"""The log in JSON: lines that programs can rely on, from actors too, and without secrets."""

from __future__ import annotations

import io
import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import OutputError
from trtfleet.trt_actors.event_log import EventLog, event_log, without_secrets
from trtfleet.trt_actors.scorer import Scorer


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_event_is_one_line_whatever_is_in_it() -> None:
    stream = io.StringIO()
    log = EventLog(stream, run="r1").bound(node="here")
    log.tell(
        "failure", "two\nlines \u2028 and {braces}", level="warning", reason="a\nb", nothing=None, x=math.nan
    )
    (event,) = written(stream)
    assert list(event) == ["time", "level", "event", "message", "run", "node", "reason", "x"]
    assert (event["message"], event["x"]) == ("two\nlines \u2028 and {braces}", None)
    assert (event["run"], event["node"], event["level"]) == ("r1", "here", "warning")


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    EventLog(stream).tell("note", "nobody hears it")


def test_text_for_people_means_silence(capfd: pytest.CaptureFixture[str]) -> None:
    log = event_log("text", run="r1")
    with log.taking_over("trtfleet.quiet"):
        log.bound(shard="s").tell("attempt_done", rows=1)
        logging.getLogger("trtfleet.quiet").info("built")
    assert capfd.readouterr() == ("", "")


def test_python_s_own_logging_is_taken_over_and_given_back() -> None:
    stream, logger = io.StringIO(), logging.getLogger("trtfleet.some_module")
    with EventLog(stream).taking_over("trtfleet.some_module"):
        logger.info("engine %s built", "3f2a")
        logger.critical("worse")
    logger.info("later")
    first, second = written(stream)
    assert (first["event"], first["level"], first["message"]) == ("log", "info", "engine 3f2a built")
    assert (second["level"], second["logger"]) == ("error", "trtfleet.some_module")
    assert logger.handlers == []


def test_secrets_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("RAY_AUTH_TOKEN", 'planted"token')
    monkeypatch.setenv("TRTFLEET_CACHE_KEY", "0123456789abcdef")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/user/.ray/auth_token")
    stream = io.StringIO()
    EventLog(stream).tell(
        "failure",
        'wJalrXUtnFEMI/K7MDENG planted"token 0123456789abcdef /home/user/.ray/auth_token',
        reason="https://user:pass@host/x?X-Amz-Signature=abc123&y=1",
    )
    (event,) = written(stream)
    assert event["message"] == "*** *** *** /home/user/.ray/auth_token"
    assert event["reason"] == "https://***@host/x?X-Amz-Signature=***&y=1"
    assert without_secrets("s3://bucket/prefix: nothing to hide") == "s3://bucket/prefix: nothing to hide"


def test_an_actor_tells_of_its_attempts(
    planned: Callable[..., Any],
    linear_model: Callable[..., Path],
    vectors: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = planned(linear_model(), vectors(), batch_size=64)
    (shard,) = job.shards
    with Scorer(replace(job.task, run="r1", log_format="json")) as scorer:
        scorer.score(shard, "r1-1")
        with monkeypatch.context() as patch:

            def broken(*_: object) -> None:
                raise OutputError("no space left", "free some")

            patch.setattr(type(job.output), "commit", broken)
            with pytest.raises(OutputError):
                scorer.score(shard, "r1-2")
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == [
        "engine_ready",
        "attempt_started",
        "attempt_done",
        "attempt_started",
        "attempt_failed",
    ]
    assert {event["run"] for event in events} == {"r1"}
    assert events[0]["backend"] == "onnxruntime-cpu"
    done, failed = events[2], events[4]
    assert (done["shard"], done["attempt"], done["rows"], done["won"]) == (shard.id, "r1-1", 1000, True)
    assert (failed["attempt"], failed["level"], failed["error"]) == ("r1-2", "warning", "OutputError")
    assert {"node", "pid", "time"} <= failed.keys()
    (whole,) = scorer.info.engine.segments
    assert whole.kind == "native"
    assert scorer.info.engine.runtimes[0].startswith("onnxruntime ")


def test_the_documentation_names_every_event() -> None:
    root = Path(__file__).resolve().parents[2]
    told = re.compile(r"\.tell\(\s*\"(\w+)\"")
    sources = [path.read_text() for layer in ("jobs", "trt_actors") for path in (root / layer).rglob("*.py")]
    events = {name for source in sources for name in told.findall(source)}
    assert {"shard_done", "attempt_done", "run_failed"} <= events
    listed = (root / "docs" / "metrics.md").read_text()
    assert {name for name in events if f"| `{name}`" not in listed} == set()
