"""The tracer and the sums of the stages, with a clock of the test's own."""

from __future__ import annotations

import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from trtfleet.trt_actors.stages import Stage, Stages, StageStats
from trtfleet.trt_actors.trace import NullTracer, TraceEvent, Tracer


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracer(clock: Clock) -> Tracer:
    return Tracer(clock=clock)


def test_a_span_tells_when_where_and_what(tracer: Tracer, clock: Clock) -> None:
    with tracer.span("read", "reading", shard="a") as details:
        clock.now_s += 2.5
        details["rows"] = 7
    track = threading.current_thread().name
    assert tracer.events() == (
        TraceEvent("X", "read", "reading", track, 100.0, 2.5, {"shard": "a", "rows": 7}),
    )


def test_spans_of_a_thread_nest(tracer: Tracer, clock: Clock) -> None:
    with tracer.span("outer"):
        clock.now_s += 1
        with tracer.span("inner"):
            clock.now_s += 1
        clock.now_s += 1
    inner, outer = tracer.events()
    assert (inner.name, inner.start_s, inner.duration_s) == ("inner", 101, 1)
    assert (outer.name, outer.start_s, outer.duration_s) == ("outer", 100, 3)


def test_a_span_that_fails_is_kept_and_says_so(tracer: Tracer) -> None:
    with pytest.raises(KeyError), tracer.span("read"):
        raise KeyError("x")
    assert tracer.events()[0].args == {"error": "KeyError"}


def test_what_begins_here_may_end_elsewhere(tracer: Tracer, clock: Clock) -> None:
    span = tracer.begin("copy", "device", bytes=10)
    clock.now_s += 0.5
    ending = threading.Thread(target=lambda: tracer.end(span, track="of the caller's own"), name="other")
    ending.start()
    ending.join()
    (event,) = tracer.events()
    assert (event.track, event.duration_s) == (threading.current_thread().name, 0.5)
    assert event.args == {"bytes": 10, "track": "of the caller's own"}


def test_a_device_tells_its_own_times(tracer: Tracer) -> None:
    tracer.complete("batch", "compute", tracer.now_s() - 3, 0.25, category="executing", rows=8)
    tracer.complete("batch", "compute", tracer.now_s(), -1e-9)
    first, second = tracer.events()
    assert first == TraceEvent("X", "batch", "executing", "compute", 97.0, 0.25, {"rows": 8})
    assert second.duration_s == 0


def test_a_counter_has_a_value_and_no_duration(tracer: Tracer) -> None:
    tracer.counter("free slots", 3)
    assert tracer.events() == (TraceEvent("C", "free slots", "", "", 100.0, 0.0, {"value": 3}),)


def test_threads_of_one_name_have_tracks_of_their_own(tracer: Tracer) -> None:
    together = threading.Barrier(3)

    def work() -> None:
        for _ in range(2):
            tracer.name_thread("feeder")
            together.wait(10)
            with tracer.span("stage"):
                together.wait(10)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracks = sorted(event.track for event in tracer.events())
    assert tracks == ["feeder", "feeder", "feeder 2", "feeder 2", "feeder 3", "feeder 3"]


def test_a_name_that_looks_numbered_is_not_given_twice(tracer: Tracer) -> None:
    for name in ("a 2", "a", "a", "a 2"):
        thread = threading.Thread(target=lambda: tracer.begin("x").__exit__(None), name=name)
        thread.start()
        thread.join()
    assert [event.track for event in tracer.events()] == ["a 2", "a", "a 3", "a 2 2"]


def test_memory_is_bounded_and_the_loss_is_told() -> None:
    tracer = Tracer(capacity=10)
    for number in range(35):
        tracer.counter("n", number)
    assert [event.args["value"] for event in tracer.events()] == list(range(25, 35))
    assert tracer.dropped == 25


def test_no_event_is_lost_between_threads() -> None:
    tracer = Tracer(capacity=500)

    def work(number: int) -> None:
        for _ in range(100):
            with tracer.span(str(number)):
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(tracer.events()) + tracer.dropped == 800
    assert len(tracer.events()) == 500


def test_events_survive_pickling(tracer: Tracer) -> None:
    with tracer.span("read", rows=1):
        tracer.counter("queue", 2.5)
    assert pickle.loads(pickle.dumps(tracer.events())) == tracer.events()


def test_a_tracer_that_is_off_keeps_nothing() -> None:
    tracer = NullTracer()
    tracer.name_thread("feeder")
    with tracer.span("read") as details:
        details["rows"] = 1
    tracer.end(tracer.begin("copy"), rows=1)
    tracer.complete("batch", "compute", 0.0, 1.0)
    tracer.counter("queue", 1)
    assert (tracer.events(), tracer.dropped, tracer.is_on) == ((), 0, False)
    with tracer.span("read") as details:
        assert details == {}


def test_stages_are_summed_and_traced(tracer: Tracer) -> None:
    stages = Stages(tracer)
    for size_bytes in (10, 20):
        with stages.measure("read") as details:
            details["bytes"] = size_bytes
            start_s = time.thread_time()
            while time.thread_time() - start_s < 0.001:
                pass
    with stages.measure(Stage.WRITE) as details:
        details["bytes"] = 5
    stats = stages.stats
    assert stats.read_bytes == 30
    assert stats.read_s > 0.001
    assert stats.read_cpu_s > 0.001
    assert stats.write_s > 0
    assert (stats.decode_s, stats.stage_s, stats.convert_s, stats.commit_s) == (0, 0, 0, 0)
    assert [(event.name, event.category) for event in tracer.events()] == [
        ("read", "reading"),
        ("read", "reading"),
        ("write", "writing"),
    ]


def test_a_stage_that_fails_counts() -> None:
    stages = Stages(NullTracer())
    with pytest.raises(ValueError), stages.measure("decode"):
        raise ValueError
    assert stages.stats.decode_s > 0


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError), Stages(NullTracer()).measure("reed"):
        pytest.fail("was measured")


def test_sums_of_several_actors_add_up_field_by_field() -> None:
    one = StageStats(read_s=1, read_cpu_s=0.5, read_bytes=10, decode_s=2, stage_s=3)
    two = StageStats(read_s=10, read_bytes=1, convert_s=4, write_s=5, commit_s=6)
    assert StageStats.total([one, two]) == StageStats(
        read_s=11, read_cpu_s=0.5, read_bytes=11, decode_s=2, stage_s=3, convert_s=4, write_s=5, commit_s=6
    )
    assert StageStats.total([]) == StageStats()
