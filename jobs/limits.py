"""What limited a job, in words, from what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from ..trt_actors.stages import StageStats
from .summary import TimeShares

__all__ = ["Bottleneck", "JobFacts", "Limit", "limit_of"]

_MOST = 0.5
_BUSY = 0.85
_LOSS = 0.1
_OWN_RATE = 0.8
_NOTHING = 1e-9


class Bottleneck(StrEnum):
    """What the rest of a job waited for."""

    ENGINE = "engine"
    COPYING = "copying"
    READING = "reading"
    DECODING = "decoding"
    STAGING = "staging"
    WRITING = "writing"
    COMMITTING = "committing"
    START_UP = "start-up"
    TAIL = "tail"
    MERGING = "merging"
    MEASURING = "measuring"
    UNKNOWN = "unknown"


# What reading other columns speeds up.
_ADVISED = (Bottleneck.READING, Bottleneck.DECODING)


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What was measured of a job.

    Attributes:
        shares: Where the actors' time went while scoring; None when no shard was scored.
        device_share: Of that time, what their devices executed by their own clocks; None on CPUs.
        efficiency: The job's rate by that of the engines alone; None when not measured.
        seconds: The whole job.
        startup_s: Of these, until the first actor was ready.
        scoring_s: Of these, from then to the last commit.
        merge_s: Of these, for the final files.
        actors: Actors that took part.
        stages: Their stages' seconds and bytes, summed over all threads of all actors.
        readers: Threads an actor reads with; no more than the cores there are for it.
        decoders: Threads an actor decodes with: those of images, else its feeders.
        feeders: Threads an actor fills slots with and commits shards, one for each shard in flight.
        batch_size: Rows a batch.
        column: The column most bytes come from, with its type: ``column image (list<uint8>)``.
        advice: Whole sentences about what would speed reading up, the best first.
    """

    shares: TimeShares | None
    device_share: float | None = None
    efficiency: float | None = None
    seconds: float = 0.0
    startup_s: float = 0.0
    scoring_s: float = 0.0
    merge_s: float = 0.0
    actors: int = 1
    stages: StageStats = field(default_factory=StageStats)
    readers: int = 1
    decoders: int = 1
    feeders: int = 1
    batch_size: int = 0
    column: str = ""
    advice: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The verdict.

    Attributes:
        what: What the rest of the job waited for.
        sentences: One or two: what was measured, and perhaps what would help.
    """

    what: Bottleneck
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.sentences)


def limit_of(facts: JobFacts) -> Limit:
    """Names the one thing that limited a job most.

    The first of these that applies:

    1. Start-up, then merging: it took at least half of the job.
    2. Unknown: the actors kept no account.
    3. The engine: it had batches at least 85% of the time, or nothing else took 10%. It was copying when its
       device executed for less than 80% of that; below 80% of its own rate, the sentence says that it was
       slowed down.
    4. What took most of the rest: starving, being blocked, idling, or measuring the engine's rate.

    An engine that starved was limited by reading, decoding, filling slots or committing shards, whichever
    kept its threads busiest; by reading, when nothing is known about them. Threads busy for less than half of
    the job are said to have had time left; readers off the cores for most of theirs, to have waited.
    """
    if _part(facts.startup_s, facts.seconds) >= _MOST:
        return _limit(
            Bottleneck.START_UP,
            f"{_seconds(facts.startup_s)} of {_seconds(facts.seconds)} s passed before the first batch",
        )
    if _part(facts.merge_s, facts.seconds) >= _MOST:
        return _limit(
            Bottleneck.MERGING,
            f"{_seconds(facts.merge_s)} of {_seconds(facts.seconds)} s went into the final files",
        )
    shares = facts.shares
    if shares is None or not any(asdict(shares).values()):
        return Limit(what=Bottleneck.UNKNOWN, sentences=("what limited the job was not measured",))
    losses = {
        Bottleneck.READING: shares.starved,
        Bottleneck.WRITING: shares.blocked,
        Bottleneck.TAIL: shares.idle,
        Bottleneck.MEASURING: shares.measuring,
    }
    loss = max(losses, key=lambda what: losses[what])
    if shares.executing >= _BUSY or losses[loss] < _LOSS:
        return _engine(facts, shares)
    match loss:
        case Bottleneck.READING:
            return _input(facts, shares)
        case Bottleneck.WRITING:
            return _writing(facts, shares)
        case Bottleneck.TAIL:
            return _limit(
                loss,
                f"actors idled {shares.idle:.0%} of the time waiting for the last shards",
                "smaller --shard-bytes would help",
            )
        case _:
            return _limit(
                loss,
                f"finding out the engine's own rate took {shares.measuring:.0%} of the time",
                "with more rows it takes no more",
            )


def _limit(what: Bottleneck, measured: str, hint: str = "") -> Limit:
    name = "the tail" if what is Bottleneck.TAIL else "the engine" if what is Bottleneck.ENGINE else what
    first = f"{name} was the limit: {measured}"
    return Limit(what=what, sentences=(first, hint) if hint else (first,))


def _engine(facts: JobFacts, shares: TimeShares) -> Limit:
    measured = f"executing {shares.executing:.0%} of the time"
    if facts.batch_size:
        measured += f" at batch size {facts.batch_size:,}"
    executed = 1.0 if facts.device_share is None else _part(facts.device_share, shares.executing)
    if executed < _OWN_RATE:
        return _limit(
            Bottleneck.COPYING,
            f"batches were on the device {shares.executing:.0%} of the time, "
            f"it executed {executed:.0%} of that",
            "larger batches would help, or inputs stored in fewer bytes, which the network casts",
        )
    own = 1.0 if facts.efficiency is None else _part(facts.efficiency, shares.executing)
    if own < _OWN_RATE:
        return _limit(
            Bottleneck.ENGINE,
            f"{measured}, but at {own:.0%} of its own rate",
            "small batches slow it down, or others on its device or cores",
        )
    return _limit(Bottleneck.ENGINE, measured)


def _input(facts: JobFacts, shares: TimeShares) -> Limit:
    stages, column = facts.stages, facts.column or "the input"
    ways = {
        Bottleneck.READING: (stages.read_s, facts.readers, "reading"),
        Bottleneck.DECODING: (stages.decode_s, facts.decoders, f"making tensors of {column}"),
        Bottleneck.STAGING: (stages.stage_s, facts.feeders, "filling slots"),
        Bottleneck.COMMITTING: (stages.commit_s, facts.feeders, "completing parts and their records"),
    }
    wall_s = facts.scoring_s * max(1, facts.actors)
    busy = {what: _part(seconds, wall_s * max(1, count)) for what, (seconds, count, _) in ways.items()}
    what = max(busy, key=lambda one: busy[one])
    _, count, doing = ways[what]
    words = [f"the engine starved {shares.starved:.0%} of the time"]
    waited = 0.0
    if busy[what]:
        words.append(f"{doing} occupied {_threads(count)} {busy[what]:.0%} of the time")
    if what is Bottleneck.READING and busy[what] >= _MOST and stages.read_cpu_s:
        waited = 1 - _part(stages.read_cpu_s, stages.read_s)
    if waited > _MOST:
        words[-1] += f", {waited:.0%} of it waiting for storage or a core"
    advice = next(filter(None, facts.advice), "") if what in _ADVISED else ""
    rate = _rate(stages.read_bytes, stages.read_cpu_s or stages.read_s)
    # The advice names the column and its rate: once is enough.
    if what is Bottleneck.READING and rate and not advice:
        words.append(f"{column} decodes at {rate} a core")
    if what is Bottleneck.COMMITTING:
        hint = "larger --shard-bytes means fewer of them"
    elif 0 < busy[what] < _MOST:
        hint = "its threads had time left: larger --shard-bytes lets them read further ahead"
    elif waited > _MOST:
        hint = "faster storage or more --cpus-per-actor would help"
    else:
        hint = "more --cpus-per-actor would help"
    return _limit(what, "; ".join(words), advice or hint)


def _writing(facts: JobFacts, shares: TimeShares) -> Limit:
    stages = facts.stages
    words = f"the engine was blocked {shares.blocked:.0%} of the time"
    if stages.convert_s + stages.write_s > _NOTHING:
        words += (
            f"; converting results took {_seconds(stages.convert_s)} s, "
            f"writing them {_seconds(stages.write_s)} s"
        )
    hint = (
        "--emit topk:K or argmax leaves less to convert"
        if stages.convert_s > stages.write_s
        else "--emit topk:K or argmax leaves less to write, --compression none writes it faster"
    )
    return _limit(Bottleneck.WRITING, words, hint)


def _part(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > _NOTHING else 0.0


def _rate(size_bytes: int, seconds: float) -> str:
    if not size_bytes or seconds <= _NOTHING:
        return ""
    rate = size_bytes / seconds
    return f"{rate / 1e9:,.1f} GB/s" if rate >= 1e9 else f"{rate / 1e6:,.0f} MB/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:,.1f}"


def _threads(count: int) -> str:
    return f"{count} threads" if count > 1 else "1 thread"
