"""Where the time of an engine's thread went."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PipelineStats"]


@dataclass(frozen=True, kw_only=True)
class PipelineStats:
    """Seconds of the engine thread since the first shard, which add up to its wall time.

    Attributes:
        busy_s: With batches on the engine.
        starved_s: Waiting for a batch while a shard was in flight.
        blocked_s: Waiting because every slot was held by the writer.
        idle_s: Waiting without a shard in flight.
        measuring_s: Measuring the engine's own rate.
        rows: Rows executed.
        engine_rows_per_s: The engine's own rate on a full batch already in its memory; 0 before it is known.
        device_s: Of ``busy_s``, what the device executed, by its own clock; None where the CPU executes.
    """

    busy_s: float = 0.0
    starved_s: float = 0.0
    blocked_s: float = 0.0
    idle_s: float = 0.0
    measuring_s: float = 0.0
    rows: int = 0
    engine_rows_per_s: float = 0.0
    device_s: float | None = None

    def followed_by(self, later: PipelineStats) -> PipelineStats:
        """Two accounts as one; the engine's own rate is the later one's, once that is known."""
        told = [stats.device_s for stats in (self, later) if stats.device_s is not None]
        return replace(
            later,
            busy_s=self.busy_s + later.busy_s,
            starved_s=self.starved_s + later.starved_s,
            blocked_s=self.blocked_s + later.blocked_s,
            idle_s=self.idle_s + later.idle_s,
            measuring_s=self.measuring_s + later.measuring_s,
            rows=self.rows + later.rows,
            engine_rows_per_s=later.engine_rows_per_s or self.engine_rows_per_s,
            device_s=sum(told) if told else None,
        )
