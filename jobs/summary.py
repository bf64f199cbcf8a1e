"""What a finished job tells: how much, how fast, and where the rest of the time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..trt_actors.pipeline_stats import PipelineStats
from .device_shares import DeviceShare, sized

__all__ = ["Summary", "TimeShares", "device_share_of", "shares_of", "sized"]


@dataclass(frozen=True, kw_only=True)
class TimeShares:
    """Where the actors' time went between the first actor's start of work and the last commit; sums to 1.

    Attributes:
        executing: The engine ran.
        starved: The engine waited for input.
        blocked: The engine waited for results to be written.
        idle: The actor had no shard, between shards or at the tail of the job.
        measuring: The engine's own rate was measured.
    """

    executing: float
    starved: float
    blocked: float
    idle: float
    measuring: float


def shares_of(actors: Mapping[str, tuple[PipelineStats, float]]) -> TimeShares | None:
    """Adds up the accounts of all actors.

    Args:
        actors: By name, the last account and the seconds from it to the end of scoring.
    """
    totals = _totals(actors)
    whole = sum(totals.values())
    return TimeShares(**{name: value / whole for name, value in totals.items()}) if whole else None


def device_share_of(actors: Mapping[str, tuple[PipelineStats, float]]) -> float | None:
    """What the actors' devices executed, by all of the actors' time; None where no device tells."""
    told = [stats.device_s for stats, _ in actors.values() if stats.device_s is not None]
    whole = sum(_totals(actors).values())
    return sum(told) / whole if told and whole else None


def _totals(actors: Mapping[str, tuple[PipelineStats, float]]) -> dict[str, float]:
    return {
        "executing": sum(stats.busy_s for stats, _ in actors.values()),
        "starved": sum(stats.starved_s for stats, _ in actors.values()),
        "blocked": sum(stats.blocked_s for stats, _ in actors.values()),
        "idle": sum(stats.idle_s + tail_s for stats, tail_s in actors.values()),
        "measuring": sum(stats.measuring_s for stats, _ in actors.values()),
    }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a job.

    Attributes:
        out: Where the results are.
        rows: Rows in the output.
        bad_rows: Rows in quarantine.
        rows_scored: Rows that this run scored, without those of earlier runs.
        shards: Shards of the job.
        files: Final Parquet files.
        actors: Actors that took part.
        backend: What executed; several are joined by a comma.
        not_taken: Why no better backend was taken; empty when the best was.
        batch_size: Rows a batch, to begin with.
        batch_origin: Whether that was ``given``, ``measured`` or ``remembered``; empty for a default.
        seconds: From the start of the command to the end.
        startup_s: Of these, until the first actor was ready.
        scoring_s: Of these, from then to the last commit.
        merge_s: Of these, for the final files.
        rows_per_s: ``rows_scored`` by ``scoring_s``.
        engine_rows_per_s: What the engines of all actors did together on batches in memory.
        efficiency: ``rows_per_s`` by ``engine_rows_per_s``; None when nothing was measured.
        shares: Where the actors' time went.
        device_share: Of the actors' time, what their devices executed by their own clocks; None on CPUs.
        limit: What limited the run, in words: one or two sentences.
        notes: What actors had to tell: smaller batches because memory ran out, and the like.
        calibration: With which table the network was quantized for this job; empty where none was needed.
        parity: How well the network in int8 stands in for the one in single precision; empty where that was
            not measured.
        devices: What each class of devices did of this run.
        failures: Attempts and actors that failed on the way.
        report: Where the report of the run is; empty without one.
        already_finished: Whether there was nothing to do.
    """

    out: str
    rows: int
    bad_rows: int
    rows_scored: int = 0
    shards: int = 0
    files: int = 0
    actors: int = 0
    backend: str = ""
    not_taken: str = ""
    batch_size: int = 0
    batch_origin: str = ""
    seconds: float = 0.0
    startup_s: float = 0.0
    scoring_s: float = 0.0
    merge_s: float = 0.0
    rows_per_s: float = 0.0
    engine_rows_per_s: float = 0.0
    efficiency: float | None = None
    shares: TimeShares | None = None
    device_share: float | None = None
    limit: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: str = ""
    parity: str = ""
    devices: tuple[DeviceShare, ...] = ()
    failures: int = 0
    report: str = ""
    already_finished: bool = False

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary in words, a few lines."""
        if self.already_finished:
            return [f"{self.out} is already finished: {self.rows:,} rows, {self.bad_rows:,} bad rows"]
        lines = [
            f"{self.rows:,} rows in {self.files:,} files under {self.out}, {self.bad_rows:,} bad rows",
            f"{self.seconds:.1f} s: start {self.startup_s:.1f}, scoring {self.scoring_s:.1f}, "
            f"merging {self.merge_s:.1f}",
        ]
        if self.rows_scored:
            lines.append(
                f"{self.rows_per_s:,.0f} rows/s on {self.actors} actors, {self.backend}, "
                f"batch size {sized(self.batch_size, self.batch_origin)}"
            )
        if len(self.devices) > 1:
            lines += [share.line(self.rows_scored) for share in self.devices]
        if self.efficiency is not None:
            lines.append(
                f"efficiency {self.efficiency:.0%}: the engines alone do {self.engine_rows_per_s:,.0f} rows/s"
            )
        if self.shares is not None:
            s = self.shares
            lines.append(
                f"actors' time: executing {s.executing:.0%}, starved for input {s.starved:.0%}, "
                f"blocked on output {s.blocked:.0%}, idle {s.idle:.0%}, measuring {s.measuring:.0%}"
            )
        if self.device_share is not None:
            lines.append(f"the devices executed {self.device_share:.0%} of the time")
        lines += [text for text in (self.calibration, self.parity) if text]
        if self.report:
            lines.append(f"report: {self.report}")
        lines += [*self.limit, *self.notes]
        if self.failures:
            lines.append(f"{self.failures:,} attempts or actors failed and were retried")
        return lines
