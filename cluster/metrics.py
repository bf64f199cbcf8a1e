"""Counters of a job as Ray exports them to Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

__all__ = ["JobMetrics"]


class JobMetrics:
    """Counters with the tag ``job``; Ray adds its own tags and the prefix ``ray_``.

    ``trtfleet_rows_total``, ``trtfleet_bad_rows_total``, ``trtfleet_shards_total``,
    ``trtfleet_failures_total`` (attempts and actors that failed) and the gauge ``trtfleet_actors``.

    Args:
        job: The value of the tag.
    """

    def __init__(self, job: str) -> None:
        def counter(name: str, description: str) -> Counter:
            made = Counter(f"trtfleet_{name}_total", description=description, tag_keys=("job",))
            made.set_default_tags({"job": job})
            return made

        self._rows = counter("rows", "Rows written")
        self._bad_rows = counter("bad_rows", "Rows quarantined")
        self._shards = counter("shards", "Shards committed")
        self._failures = counter("failures", "Attempts and actors that failed")
        self._actors = Gauge("trtfleet_actors", description="Actors at work", tag_keys=("job",))
        self._actors.set_default_tags({"job": job})
        self._failures_seen = 0

    def shard_done(self, rows: int, bad_rows: int) -> None:
        """Counts a committed shard."""
        self._shards.inc(1)
        for counter, value in ((self._rows, rows), (self._bad_rows, bad_rows)):
            if value:
                counter.inc(value)

    def state(self, actors: int, failures: int) -> None:
        """Sets what is counted elsewhere: actors at work and failures so far."""
        self._actors.set(actors)
        if failures > self._failures_seen:
            self._failures.inc(failures - self._failures_seen)
            self._failures_seen = failures
