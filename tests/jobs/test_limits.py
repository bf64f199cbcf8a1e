"""Verdicts on jobs: one table, and what holds for any measurement."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.jobs.limits import Bottleneck, JobFacts, limit_of
from trtfleet.jobs.summary import TimeShares
from trtfleet.trt_actors.stages import StageStats

ADVICE = (
    "column image (list<uint8>) is read at 118 MB/s a core; `trtfleet convert` would make it 9.6 times faster"
)


def shares(**parts: float) -> TimeShares:
    """Shares that sum to 1; what is not named goes to ``executing``."""
    rest = 1 - sum(parts.values())
    named = {"executing": rest, "starved": 0.0, "blocked": 0.0, "idle": 0.0, "measuring": 0.0, **parts}
    return TimeShares(**named)


def job(parts: TimeShares | None, **facts: Any) -> JobFacts:
    """A job of 100 s on one actor with four readers, two decoders and two feeders."""
    times = {"seconds": 110.0, "startup_s": 5.0, "scoring_s": 100.0, "merge_s": 5.0}
    threads = {"readers": 4, "decoders": 2, "feeders": 2}
    return JobFacts(shares=parts, **{**times, **threads, **facts})


READING = StageStats(read_s=392, read_cpu_s=380, read_bytes=380 * 118_000_000, decode_s=4, stage_s=10)
COLUMN = "column image (list<uint8>)"

TABLE = [
    (
        "engine",
        job(shares(starved=0.03)),
        Bottleneck.ENGINE,
        "the engine was the limit: executing 97% of the time",
    ),
    (
        "engine at its own rate",
        job(shares(starved=0.03), efficiency=0.95, batch_size=1024),
        Bottleneck.ENGINE,
        "the engine was the limit: executing 97% of the time at batch size 1,024",
    ),
    (
        "engine slowed down",
        job(shares(starved=0.03), efficiency=0.6),
        Bottleneck.ENGINE,
        "the engine was the limit: executing 97% of the time, but at 62% of its own rate; "
        "small batches slow it down, or others on its device or cores",
    ),
    (
        "engine, executing by the device's clock",
        job(shares(starved=0.03), device_share=0.9, efficiency=0.93),
        Bottleneck.ENGINE,
        "the engine was the limit: executing 97% of the time",
    ),
    (
        "copying",
        job(shares(starved=0.1), device_share=0.54, efficiency=0.5),
        Bottleneck.COPYING,
        "copying was the limit: batches were on the device 90% of the time, it executed 60% of that; "
        "larger batches would help, or inputs stored in fewer bytes, which the network casts",
    ),
    (
        "engine, the rest spread thin",
        job(shares(starved=0.09, blocked=0.09, idle=0.09)),
        Bottleneck.ENGINE,
        "the engine was the limit: executing 73% of the time",
    ),
    (
        "reading, with advice",
        job(shares(starved=0.61), stages=READING, column=COLUMN, advice=[ADVICE, "more"]),
        Bottleneck.READING,
        "reading was the limit: the engine starved 61% of the time; "
        "reading occupied 4 threads 98% of the time; " + ADVICE,
    ),
    (
        "reading, without advice",
        job(shares(starved=0.61), stages=READING, column=COLUMN),
        Bottleneck.READING,
        "reading was the limit: the engine starved 61% of the time; "
        "reading occupied 4 threads 98% of the time; "
        "column image (list<uint8>) decodes at 118 MB/s a core; more --cpus-per-actor would help",
    ),
    (
        "reading, waiting for storage",
        job(shares(starved=0.7), stages=replace(READING, read_cpu_s=39.2, read_bytes=392 * 10**9)),
        Bottleneck.READING,
        "reading was the limit: the engine starved 70% of the time; "
        "reading occupied 4 threads 98% of the time, "
        "90% of it waiting for storage or a core; the input decodes at 10.0 GB/s a core; "
        "faster storage or more --cpus-per-actor would help",
    ),
    (
        "reading, by threads that had time left",
        job(shares(starved=0.7), stages=StageStats(read_s=80, read_cpu_s=8)),
        Bottleneck.READING,
        "reading was the limit: the engine starved 70% of the time; "
        "reading occupied 4 threads 20% of the time; "
        "its threads had time left: larger --shard-bytes lets them read further ahead",
    ),
    (
        "reading, nothing known about threads",
        job(shares(starved=0.5)),
        Bottleneck.READING,
        "reading was the limit: the engine starved 50% of the time; more --cpus-per-actor would help",
    ),
    (
        "decoding",
        job(
            shares(starved=0.8),
            stages=StageStats(read_s=20, read_cpu_s=20, decode_s=196, stage_s=10),
            column="column photo (binary)",
        ),
        Bottleneck.DECODING,
        "decoding was the limit: the engine starved 80% of the time; "
        "making tensors of column photo (binary) occupied 2 threads 98% of the time; "
        "more --cpus-per-actor would help",
    ),
    (
        "staging, which reading's advice does not speed up",
        job(shares(starved=0.4), stages=StageStats(read_s=20, stage_s=150), advice=[ADVICE]),
        Bottleneck.STAGING,
        "staging was the limit: the engine starved 40% of the time; "
        "filling slots occupied 2 threads 75% of the time; more --cpus-per-actor would help",
    ),
    (
        "committing",
        job(shares(starved=0.4), stages=StageStats(read_s=20, stage_s=15, commit_s=120), advice=[ADVICE]),
        Bottleneck.COMMITTING,
        "committing was the limit: the engine starved 40% of the time; "
        "completing parts and their records occupied 2 threads 60% of the time; "
        "larger --shard-bytes means fewer of them",
    ),
    (
        "writing",
        job(shares(blocked=0.35), stages=StageStats(convert_s=2, write_s=93.2)),
        Bottleneck.WRITING,
        "writing was the limit: the engine was blocked 35% of the time; converting results took 2.0 s, "
        "writing them 93.2 s; "
        "--emit topk:K or argmax leaves less to write, --compression none writes it faster",
    ),
    (
        "converting",
        job(shares(blocked=0.35), stages=StageStats(convert_s=1200, write_s=2)),
        Bottleneck.WRITING,
        "writing was the limit: the engine was blocked 35% of the time; converting results took 1,200 s, "
        "writing them 2.0 s; --emit topk:K or argmax leaves less to convert",
    ),
    (
        "start-up",
        job(shares(starved=0.9), seconds=7.0, startup_s=6.0),
        Bottleneck.START_UP,
        "start-up was the limit: 6.0 of 7.0 s passed before the first batch",
    ),
    (
        "start-up of a job that scored nothing",
        job(None, seconds=7.0, startup_s=6.0),
        Bottleneck.START_UP,
        "start-up was the limit: 6.0 of 7.0 s passed before the first batch",
    ),
    (
        "merging",
        job(shares(), seconds=20.0, startup_s=2.0, merge_s=12.0),
        Bottleneck.MERGING,
        "merging was the limit: 12.0 of 20.0 s went into the final files",
    ),
    (
        "tail",
        job(shares(idle=0.3, starved=0.1)),
        Bottleneck.TAIL,
        "the tail was the limit: actors idled 30% of the time waiting for the last shards; "
        "smaller --shard-bytes would help",
    ),
    (
        "measuring",
        job(shares(measuring=0.4)),
        Bottleneck.MEASURING,
        "measuring was the limit: finding out the engine's own rate took 40% of the time; "
        "with more rows it takes no more",
    ),
    ("nothing known", job(None), Bottleneck.UNKNOWN, "what limited the job was not measured"),
    (
        "nothing happened",
        job(shares(executing=0.0)),
        Bottleneck.UNKNOWN,
        "what limited the job was not measured",
    ),
]


@pytest.mark.parametrize(
    ("facts", "what", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_verdict(facts: JobFacts, what: Bottleneck, words: str) -> None:
    limit = limit_of(facts)
    assert (limit.what, str(limit)) == (what, words)


def test_every_verdict_is_in_the_table() -> None:
    assert {what for _, _, what, _ in TABLE} == set(Bottleneck)


@pytest.mark.parametrize(("executing", "what"), [(0.85, Bottleneck.ENGINE), (0.84, Bottleneck.READING)])
def test_an_engine_busy_enough_is_the_limit(executing: float, what: Bottleneck) -> None:
    assert limit_of(job(shares(starved=1 - executing))).what is what


@pytest.mark.parametrize(("starved", "what"), [(0.09, Bottleneck.ENGINE), (0.11, Bottleneck.READING)])
def test_a_small_loss_is_no_limit(starved: float, what: Bottleneck) -> None:
    assert limit_of(job(shares(starved=starved, blocked=0.08, idle=0.08))).what is what


@pytest.mark.parametrize(("startup_s", "what"), [(5.0, Bottleneck.START_UP), (4.9, Bottleneck.ENGINE)])
def test_half_of_the_job_is_too_much_start_up(startup_s: float, what: Bottleneck) -> None:
    assert limit_of(job(shares(), seconds=10.0, startup_s=startup_s, merge_s=0.1)).what is what


def test_threads_of_all_actors_share_the_work() -> None:
    one = job(shares(starved=0.6), stages=StageStats(read_s=392))
    assert "4 threads 98% of the time" in str(limit_of(one))
    assert "4 threads 49% of the time" in str(limit_of(replace(one, actors=2)))


SHARES = st.builds(TimeShares, **dict.fromkeys(TimeShares.__annotations__, st.floats(0, 1)))
AMOUNTS = st.floats(0, 1e12) | st.sampled_from([0.0, 5e-324, 1e-9, 1.0])
COUNTS = st.integers(0, 1000)


@given(
    st.builds(
        JobFacts,
        shares=st.none()
        | st.builds(TimeShares, **dict.fromkeys(TimeShares.__annotations__, st.floats(0, 1))),
        device_share=st.none() | st.floats(0, 2),
        efficiency=st.none() | AMOUNTS,
        seconds=AMOUNTS,
        startup_s=AMOUNTS,
        scoring_s=AMOUNTS,
        merge_s=AMOUNTS,
        actors=COUNTS,
        stages=st.builds(
            StageStats,
            read_s=AMOUNTS,
            read_cpu_s=AMOUNTS,
            read_bytes=st.integers(0, 1 << 60),
            decode_s=AMOUNTS,
            stage_s=AMOUNTS,
            convert_s=AMOUNTS,
            write_s=AMOUNTS,
            commit_s=AMOUNTS,
        ),
        readers=COUNTS,
        decoders=COUNTS,
        feeders=COUNTS,
        batch_size=COUNTS,
        column=st.sampled_from(["", "column a (double)"]),
        advice=st.lists(st.sampled_from(["", ADVICE]), max_size=2),
    )
)
def test_any_measurement_has_a_verdict_in_one_or_two_sentences(facts: JobFacts) -> None:
    limit = limit_of(facts)
    assert len(limit.sentences) in (1, 2)
    assert all(sentence.strip() == sentence != "" for sentence in limit.sentences)
    assert "\n" not in str(limit)
    words = str(limit).replace("%", " ").replace(",", " ").split()
    assert not {"nan", "inf", "-inf"} & set(words)
    percents = [word for word in str(limit).split() if word.endswith("%")]
    assert all(0 <= int(word[:-1]) <= 100 for word in percents)
