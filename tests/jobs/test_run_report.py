"""The report of a run: what it notes down, in bounded memory, and the page in a real browser."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trtfleet
from hypothesis import given
from hypothesis import strategies as st
from selenium import webdriver
from selenium.webdriver.common.by import By
from trtfleet.cluster.events import Incident
from trtfleet.datasets.records import CommitRecord, RunRecord
from trtfleet.errors import BadRowsError
from trtfleet.jobs import run_report_html
from trtfleet.jobs.actor_books import ActorBooks
from trtfleet.jobs.run_facts import Circumstances, RunFacts
from trtfleet.jobs.run_report import RunReport
from trtfleet.jobs.run_report_charts import duration_text
from trtfleet.jobs.run_report_history import History
from trtfleet.jobs.run_report_html import run_page
from trtfleet.tests.jobs.test_partition_html import HOSTILE, browser
from trtfleet.trt_actors.pipeline_stats import PipelineStats
from trtfleet.trt_actors.stages import StageStats
from trtfleet.trt_actors.task import ActorInfo, EngineFacts, Receipt, SegmentFacts

__all__ = ["browser"]

ENGINE = EngineFacts(
    runtimes=("tensorrt 10.16.1", "onnxruntime 1.31.1"),
    segments=(
        SegmentFacts(name="tensorrt-0", kind="tensorrt", nodes=1445, multiply_adds=134_000_000_000),
        SegmentFacts(name="native-1", kind="native", nodes=61, multiply_adds=0),
        SegmentFacts(name="tensorrt-2", kind="tensorrt", nodes=478, multiply_adds=9_100_000_000),
    ),
    segments_total=3,
    native=((f"no importer for NonZero {HOSTILE}", 12), ("a segment of 2 nodes is smaller than 3", 49)),
    origin="found",
)


def report(
    *,
    actors: int = 6,
    shards: int = 240,
    speed: float = 1.0,
    state: str = "finished",
    mark: str = HOSTILE,
    failed: bool = True,
) -> RunReport:
    """A run on a made-up clock, of actors that are ready one after the other; the last is slower."""
    dice = random.Random(0)
    history, books = History(100.0), ActorBooks()
    ready = [100.0 + 4.0 + 0.6 * min(place, 20) for place in range(actors)]
    free = list(ready)
    for place in range(actors):
        info = ActorInfo(
            backend="tensorrt",
            device="NVIDIA H100 80GB HBM3 (9.0)",
            not_taken="",
            batch_size=256,
            batch_origin="measured",
            node=f"gpu-node-{place // 4:02d}",
            pid=1000 + place,
            start_s=3.5,
            engine=ENGINE,
        )
        books.add(f"actor-{place + 1:04d}", info, ready[place])
    listed = list(books)
    rows = 4096
    for number in range(shards):
        place = min(range(actors), key=free.__getitem__)
        seconds = speed * dice.uniform(0.8, 1.2) * (2.0 if place == actors - 1 else 1.0)
        free[place] += seconds
        book, at_s = listed[place], free[place]
        spent = at_s - ready[place]
        record = CommitRecord(
            shard=f"shard{number}",
            attempt="r-1",
            rows=rows,
            bad_rows=0,
            part="p",
            part_bytes=1,
            sha256=None,
            quarantine=None,
        )
        receipt = Receipt(
            record=record,
            won=True,
            seconds=seconds,
            stats=PipelineStats(
                busy_s=0.82 * spent,
                starved_s=0.1 * spent,
                blocked_s=0.03 * spent,
                idle_s=0.02 * spent,
                measuring_s=0.03 * spent,
                rows=rows * (book.shards + 1),
                engine_rows_per_s=1.12 * rows / speed,
                device_s=0.78 * spent,
            ),
            stages=StageStats(
                read_s=1.1 * spent,
                read_cpu_s=0.4 * spent,
                read_bytes=10**9,
                decode_s=0.6 * spent,
                stage_s=0.3 * spent,
                convert_s=0.1 * spent,
                write_s=0.2 * spent,
                commit_s=0.05 * spent,
            ),
        )
        books.hear(book, receipt, at_s)
        book.shards += 1
        book.rows += rows
        history.shard_done(book.place, rows, at_s, seconds)
    scored_s = max(free) - 100.0
    if failed:
        incidents = tuple(
            Incident(100.0 + share * scored_s, subject, reason)
            for share, subject, reason in (
                (0.3, "actor-0003", f"ActorDiedError: its process was killed {mark}"),
                (0.31, "shard77", "cannot read s3://bucket/photos/7.parquet: timed out"),
                (0.6, "shard78", "cannot read s3://bucket/photos/7.parquet: timed out"),
            )
        )
        assert history.failures(incidents) == list(incidents)
    facts = RunFacts(
        run="90b1e6aa",
        state=state,
        out="s3://results/photos",
        started_s=1_700_000_000.0,
        rows_planned=shards * rows,
        rows=shards * rows,
        rows_before=0,
        bad_rows=3,
        shards=shards,
        shards_before=0,
        shards_done=shards,
        ready_s=4.0,
        scored_s=scored_s if state == "finished" else None,
        end_s=scored_s + 3.0,
        timeline=history.timeline(),
        failures=history.groups,
        deaths=1 if failed else 0,
        errors=2 if failed else 0,
        actors=listed,
        engines=books.engines,
        notes=("out of memory: batch size 512 -> 256",),
        quarantines=(),
        heard_offset_s=100.0,
    )
    return RunReport(
        model=f"resnet50{mark}.onnx",
        generation="g0001",
        precision="fp16",
        nodes=1984,
        summary=facts.summary(
            seconds=scored_s + 4.5, circumstances=Circumstances(), files=12, rows=(shards * rows - 3, 3)
        ),
        facts=facts,
        error="" if state == "finished" else f"shard shard9 failed 4 times {mark}",
        hint="" if state == "finished" else "see `trtfleet status OUT`",
        bad=[{"file": f"/data/{mark}.parquet", "row": 1234, "column": "photo", "reason": "no JPEG"}],
        earlier=[
            RunRecord(run="11223344", state="failed", started_s=1_699_990_000.0, error=f"full {mark}"),
            RunRecord(run="55667788", state="running", started_s=1_699_995_000.0, updated_s=1_699_996_000.0),
        ],
        versions={"python": "3.11.7", "trtfleet": "0.1.0"},
    )


@pytest.fixture
def opened(browser: webdriver.Chrome, tmp_path: Path) -> Callable[[RunReport], webdriver.Chrome]:
    def open_(shown: RunReport) -> webdriver.Chrome:
        path = tmp_path / "report.html"
        path.write_bytes(run_page(shown))
        browser.get_log("browser")
        browser.get(path.as_uri())
        return browser

    return open_


def test_the_page_shows_a_finished_run_and_runs_nothing(opened: Callable[..., webdriver.Chrome]) -> None:
    shown = report()
    page = opened(shown)
    assert page.title == page.find_element(By.TAG_NAME, "h1").text == f"Scoring with resnet50{HOSTILE}.onnx"
    assert page.find_element(By.CSS_SELECTOR, ".state").text == "finished"
    text = page.find_element(By.TAG_NAME, "body").text
    for words in ("983,037 rows in 12 files, 3 bad rows", "run 90b1e6aa", "batch size 256 (measured)"):
        assert words in text
    assert shown.summary.limit[0] in text
    assert page.execute_script("return [window.broken, document.images.length, document.scripts.length]") == [
        None,
        0,
        0,
    ]
    assert page.get_log("browser") == []


def test_every_actor_has_a_lane_and_a_line(opened: Callable[..., webdriver.Chrome]) -> None:
    page = opened(report())
    names = [f"actor-{number:04d}" for number in range(1, 7)]
    assert [lane.text for lane in page.find_elements(By.CSS_SELECTOR, "g.lane text")] == names
    rows = page.find_elements(By.CSS_SELECTOR, "#actors tbody tr")
    assert [row.text.split()[0] for row in rows] == names
    assert len(page.find_elements(By.CSS_SELECTOR, "#actors tbody svg.bar")) == 6
    assert len(page.find_elements(By.CSS_SELECTOR, "path.failed")) >= 2


def test_shares_are_told_in_full(opened: Callable[..., webdriver.Chrome]) -> None:
    shown = report()
    page = opened(shown)
    legends = [one.text for one in page.find_elements(By.CSS_SELECTOR, "#time .legend")]
    assert shown.summary.shares is not None
    assert f"executing {shown.summary.shares.executing:.1%}" in legends[1]
    for name in ("reading", "waiting for storage", "decoding", "filling slots", "writing", "committing"):
        assert name in legends[2]


def test_the_partition_and_its_reasons(opened: Callable[..., webdriver.Chrome]) -> None:
    page = opened(report())
    section = page.find_element(By.ID, "engine").text
    assert "tensorrt 10.16.1, onnxruntime 1.31.1; found in the engine cache" in section
    assert "96.9% of the operators run in TensorRT" in section
    assert f"no importer for NonZero {HOSTILE}" in section
    cells = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#engine tbody tr")]
    assert cells[0] == "tensorrt-0 TensorRT 1,445 134.0 G"


def test_failures_are_grouped_and_the_cause_comes_first(opened: Callable[..., webdriver.Chrome]) -> None:
    page = opened(report(state="failed"))
    assert page.find_element(By.CSS_SELECTOR, ".state").text == "failed"
    first = page.find_element(By.CSS_SELECTOR, "main > *").text
    assert f"shard shard9 failed 4 times {HOSTILE}" in first
    assert "see `trtfleet status OUT`" in first
    rows = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#failures tbody tr")]
    assert rows[0].startswith("2 cannot read s3://bucket/photos/7.parquet: timed out shard77")
    assert HOSTILE in rows[1]
    assert HOSTILE in page.find_element(By.ID, "bad").text
    assert f"full {HOSTILE}" in page.find_element(By.ID, "earlier").text


def test_an_earlier_run_without_an_end_says_when_it_was_heard_of(
    opened: Callable[..., webdriver.Chrome],
) -> None:
    rows = opened(report()).find_elements(By.CSS_SELECTOR, "#earlier tbody tr")
    assert "running, heard of until 2023-11-14 21:06:40" in rows[1].text


def test_charts_can_be_read_on_a_telephone(opened: Callable[..., webdriver.Chrome]) -> None:
    page = opened(report())
    phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        height = page.execute_script(
            "return document.querySelector('.chart text').getBoundingClientRect().height"
        )
        width = page.execute_script("return document.documentElement.scrollWidth")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert height > 8
    assert width == 390


def test_a_run_without_a_shard_has_a_page(opened: Callable[..., webdriver.Chrome]) -> None:
    page = opened(report(actors=1, shards=0, state="stopped", failed=False))
    assert "No shard was scored in this run." in page.find_element(By.TAG_NAME, "body").text
    assert page.get_log("browser") == []


def test_many_actors_share_lanes_and_the_page_stays_small() -> None:
    few, many = run_page(report(actors=40, shards=400)), run_page(report(actors=700, shards=9000, speed=40.0))
    assert many.count(b'<g class="lane">') <= 40
    assert b"and 640 more actors" in many
    assert len(many) < 1.5 * len(few) < 400_000
    assert not re.search(rb"https?:|@@[a-z-]+@@", many.replace(b"@@data@@", b""))


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 10**6), st.floats(0, 1e5), st.floats(0, 1e5)),
        max_size=60,
    )
)
def test_no_row_is_lost_however_coarse_the_history(done: list[tuple[int, int, float, float]]) -> None:
    history = History(50.0)
    for place, rows, at_s, seconds in done:
        history.shard_done(place, rows, 50.0 + at_s, seconds)
    timeline = history.timeline()
    assert timeline.rows.sum() == pytest.approx(sum(rows for _, rows, _, _ in done), rel=1e-6, abs=1e-3)
    assert timeline.rows.min() > -1e-3
    assert timeline.rows.shape[0] <= 40
    assert timeline.rows.shape[1] <= 120
    last_s = max((at_s for _, _, at_s, _ in done), default=0.0)
    assert timeline.bin_s * timeline.rows.shape[1] >= last_s


def test_rows_are_spread_over_the_time_their_shard_took() -> None:
    history = History(0.0)
    history.shard_done(0, 100, 10.0, 5.0)
    history.shard_done(3, 50, 2.0, 1.0)
    timeline = history.timeline()
    at_s = np.arange(timeline.rows.shape[1]) * timeline.bin_s
    rates = timeline.rows_per_s
    assert rates[0][(at_s >= 5.5) & (at_s < 9.5)] == pytest.approx(20.0)
    assert not rates[0][at_s < 4.5].any()
    assert rates[3].sum() * timeline.bin_s == pytest.approx(50)


def test_incidents_are_noted_once_and_reasons_are_bounded() -> None:
    history = History(0.0)
    seen: tuple[Incident, ...] = ()
    for number in range(300):
        seen = (*seen, Incident(float(number), f"shard{number}", f"reason {number}"))[-100:]
        assert len(history.failures(seen)) == 1
        assert history.failures(seen) == []
    assert sum(group.count for group in history.groups) == 300
    assert history.timeline().failures.sum() == 300
    assert len(history.groups) == 101
    assert history.groups[0].reason == "other reasons"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.04, "40 ms"),
        (1.25, "1.2 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


class TestJobs:
    """Reports of real jobs."""

    pytestmark = pytest.mark.usefixtures("ray_session")

    def test_score_writes_a_report_and_says_where(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        out = tmp_path / "out"
        ran = command("score", linear_model(), vectors(), out, "--shard-bytes", "800", "--actors", "1")
        place = out / "_trtfleet" / "g0001" / "report.html"
        assert f"report: {place}" in ran.stdout
        text = place.read_text()
        for words in (
            "Scoring with linear.onnx",
            "1,000 rows in 1 file",
            "The whole network (1 operators as",
        ):
            assert words in text
        assert text.count('<g class="lane">') == 1
        assert trtfleet.status(str(out)).state == "finished"

    def test_a_failed_job_has_a_report_too_and_the_next_one_tells_of_it(
        self, tmp_path: Path, linear_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]
    ) -> None:
        lists = pa.array([[1.0, 2.0, 3.0, 4.0], None, [5.0, 6.0, 7.0, 8.0]], pa.list_(pa.float32(), 4))
        pq.write_table(pa.table({"x": lists}), tmp_path / "data.parquet")
        arguments = {"batch_size": 2, "actors": 1}
        with pytest.raises(BadRowsError):
            trtfleet.score(linear_model(), tmp_path / "data.parquet", tmp_path / "out", **arguments)
        place = tmp_path / "out" / "_trtfleet" / "g0001" / "report.html"
        failed = place.read_text()
        assert "1 rows are bad, 0 allowed" in failed
        assert "1 bad row</h2>" in failed
        summary = trtfleet.score(
            linear_model(), tmp_path / "data.parquet", tmp_path / "out", max_bad_rows=1, **arguments
        )
        assert summary.report == str(place)
        text = place.read_text()
        assert "Other runs on this output" in text
        assert "1 rows are bad, 0 allowed" in text

    def test_without_a_report(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        summary = trtfleet.score(linear_model(), vectors(), tmp_path / "out", actors=1, report=False)
        assert summary.report == ""
        assert not list(tmp_path.glob("out/_trtfleet/*/report.html"))

    def test_a_defect_of_the_page_does_not_fail_the_job(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def broken(_: RunReport) -> bytes:
            raise ValueError("a page with a defect")

        monkeypatch.setattr(run_report_html, "run_page", broken)
        ran = command("score", linear_model(), vectors(), tmp_path / "out", "--actors", "1")
        assert ran.code == 0
        assert "no report: a page with a defect" in ran.stderr
        assert "report:" not in ran.stdout
        assert (tmp_path / "out" / "_SUCCESS").exists()

    def test_the_log_in_json(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-0123456789")
        out = tmp_path / "planted-secret-0123456789"
        ran = command(
            "score",
            linear_model(),
            vectors(),
            out,
            "--shard-bytes",
            "800",
            "--actors",
            "1",
            "--log-format",
            "json",
        )
        assert ran.code == 0
        assert "planted" not in ran.stderr
        events = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
        names = [event["event"] for event in events]
        assert [names[0], names[-1]] == ["job_planned", "run_finished"]
        shards = [event for event in events if event["event"] == "shard_done"]
        started = events[names.index("run_started")]
        assert len(shards) == started["shards"] > 1
        assert sum(event["rows"] for event in shards) == 1000
        run = started["run"]
        for event in events[names.index("run_started") :]:
            assert event["run"] == run
        for event in shards:
            assert {"time", "level", "run", "shard", "actor", "node", "pid", "attempt"} <= event.keys()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])

    def test_a_failure_in_the_log_in_json_is_one_line_and_the_exit_code(
        self, tmp_path: Path, linear_model: Callable[..., Path], command: Callable[..., Any]
    ) -> None:
        ran = command(
            "score", linear_model(), tmp_path / "no.parquet", tmp_path / "out", "--log-format", "json"
        )
        assert ran.code == 4
        (line,) = ran.stderr.splitlines()
        event = json.loads(line)
        assert (event["event"], event["level"], event["exit_code"]) == ("run_failed", "error", 4)
        assert "no.parquet" in event["reason"]
