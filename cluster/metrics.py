"""What a scoring run exports to Prometheus, through Ray; ``docs/metrics.md`` has the list."""

from __future__ import annotations

import time
from collections import Counter as Sums
from collections.abc import Callable, Mapping

from ray.util.metrics import Counter, Gauge

__all__ = ["JobMetrics"]

_EVERY_S = 1.0


class JobMetrics:
    """Counters and gauges with the tag ``run``; Ray adds its own tags and the prefix ``ray_``.

    What is counted is kept here and handed to Ray once a second: a call of Ray's costs more than a shard's
    bookkeeping otherwise.

    Args:
        run: The value of the tag.
        clock: Monotonic seconds.
    """

    def __init__(self, run: str, clock: Callable[[], float] = time.monotonic) -> None:
        def counter(name: str, description: str, *tags: str) -> Counter:
            made = Counter(f"trtfleet_{name}_total", description=description, tag_keys=("run", *tags))
            return made.set_default_tags({"run": run})

        def gauge(name: str, description: str, *tags: str) -> Gauge:
            made = Gauge(f"trtfleet_{name}", description=description, tag_keys=("run", *tags))
            return made.set_default_tags({"run": run})

        self._rows = counter("rows", "Rows written")
        self._bad_rows = counter("bad_rows", "Rows quarantined")
        self._shards = counter("shards", "Shards committed")
        self._failures = counter("failures", "Attempts and actors that failed")
        self._read_bytes = counter("read_bytes", "Bytes that were read, as they lie in memory")
        self._stage_seconds = counter("stage_seconds", "Seconds of actors' threads in a stage", "stage")
        self._actor_seconds = counter(
            "actor_seconds", "Seconds of actors' engine threads in a state", "state"
        )
        self._device_seconds = counter("device_seconds", "Seconds that devices executed, by their own clocks")
        self._actors = gauge("actors", "Actors at work")
        self._shards_pending = gauge("shards_pending", "Shards that wait for an actor")
        self._shards_in_flight = gauge("shards_in_flight", "Shards that an actor has")
        self._gpu_busy_share = gauge(
            "gpu_busy_share", "What a node's GPUs executed of their actors' time", "node"
        )
        self._clock = clock
        self._flushed_s = float("-inf")
        self._failures_seen = 0
        self._counted: Sums[str] = Sums()
        self._stages: Sums[str] = Sums()
        self._states: Sums[str] = Sums()
        self._devices: dict[str, tuple[float, float]] = {}
        self._gauges: dict[str, float] = {}

    def shard_done(self, rows: int, bad_rows: int) -> None:
        """Counts a committed shard."""
        self._counted["shards"] += 1
        self._counted["rows"] += rows
        self._counted["bad_rows"] += bad_rows

    def worked(
        self,
        node: str,
        *,
        states: Mapping[str, float],
        stages: Mapping[str, float],
        read_bytes: int,
        device_s: float | None,
    ) -> None:
        """Counts what an actor did since it was last heard of.

        Args:
            node: Where it runs.
            states: Seconds of its engine thread by state.
            stages: Seconds of its other threads by stage.
            read_bytes: What it read.
            device_s: Seconds that its device executed; None where the CPU does.
        """
        self._states.update(states)
        self._stages.update(stages)
        self._counted["read_bytes"] += read_bytes
        if device_s is not None:
            busy_s, whole_s = self._devices.get(node, (0.0, 0.0))
            self._devices[node] = (busy_s + device_s, whole_s + sum(states.values()))

    def state(self, *, actors: int, failures: int, pending: int, in_flight: int) -> None:
        """Sets what is counted elsewhere, and hands everything to Ray when it is time.

        Args:
            actors: At work.
            failures: Attempts and actors that failed so far.
            pending: Shards that wait for an actor.
            in_flight: Shards that some actor has.
        """
        self._counted["failures"] += max(0, failures - self._failures_seen)
        self._failures_seen = max(failures, self._failures_seen)
        self._gauges = {"actors": actors, "pending": pending, "in_flight": in_flight}
        if self._clock() - self._flushed_s >= _EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Hands everything to Ray now."""
        self._flushed_s = self._clock()
        for name, counter in (
            ("rows", self._rows),
            ("bad_rows", self._bad_rows),
            ("shards", self._shards),
            ("failures", self._failures),
            ("read_bytes", self._read_bytes),
        ):
            _add(counter, self._counted.pop(name, 0))
        for sums, counter, tag in (
            (self._stages, self._stage_seconds, "stage"),
            (self._states, self._actor_seconds, "state"),
        ):
            for name, seconds in sums.items():
                _add(counter, seconds, {tag: name})
            sums.clear()
        for node, (busy_s, whole_s) in self._devices.items():
            _add(self._device_seconds, busy_s)
            if whole_s > 0:
                self._gpu_busy_share.set(min(1.0, busy_s / whole_s), tags={"node": node})
        self._devices = dict.fromkeys(self._devices, (0.0, 0.0))
        if self._gauges:
            self._actors.set(self._gauges["actors"])
            self._shards_pending.set(self._gauges["pending"])
            self._shards_in_flight.set(self._gauges["in_flight"])

    def close(self) -> None:
        """The run is over: the last counts, and gauges at zero, which Ray would else repeat for as long as
        this process lives."""
        self._gauges = dict.fromkeys(("actors", "pending", "in_flight"), 0)
        self.flush()
        for node in self._devices:
            self._gpu_busy_share.set(0, tags={"node": node})


def _add(counter: Counter, value: float, tags: dict[str, str] | None = None) -> None:
    # Ray refuses to add nothing.
    if value > 0:
        counter.inc(value, tags)
