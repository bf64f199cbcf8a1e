"""What a run counts, as Prometheus would scrape it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

import pytest
from trtfleet.cluster.metrics import JobMetrics

Series = dict[tuple[str, str], float]


def scraped(run: str, complete: Callable[[Series], bool]) -> Series:
    """The series of a run at this node's scrape endpoint, by name and the value of their own tag."""
    import ray

    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: Series = {}
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not complete(found):
        text = urllib.request.urlopen(url, timeout=30).read().decode()
        for line in text.splitlines():
            if f'run="{run}"' in line and line.startswith("ray_trtfleet_"):
                name, _, rest = line.partition("{")
                tags, _, value = rest.rpartition("} ")
                own = [tag for tag in ("stage", "state", "node") if f',{tag}="' in f",{tags}"]
                text_of = f",{tags}".partition(f',{own[0]}="')[2].partition('"')[0] if own else ""
                found[name.removeprefix("ray_trtfleet_"), text_of] = float(value)
        time.sleep(0.5)
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_everything_reaches_the_scrape_endpoint() -> None:
    metrics = JobMetrics("test-run")
    metrics.shard_done(7, 2)
    metrics.shard_done(5, 0)
    metrics.worked(
        "gpu-node",
        states={"executing": 3.0, "starved": 1.0},
        stages={"read": 1.5, "write": 0.25},
        read_bytes=4096,
        device_s=2.0,
    )
    metrics.worked(
        "cpu-node", states={"executing": 1.0}, stages={"read": 0.5}, read_bytes=1024, device_s=None
    )
    metrics.state(actors=3, failures=1, pending=9, in_flight=6)
    metrics.state(actors=2, failures=1, pending=8, in_flight=4)
    metrics.flush()
    wanted = {
        ("rows_total", ""): 12.0,
        ("bad_rows_total", ""): 2.0,
        ("shards_total", ""): 2.0,
        ("failures_total", ""): 1.0,
        ("read_bytes_total", ""): 5120.0,
        ("stage_seconds_total", "read"): 2.0,
        ("stage_seconds_total", "write"): 0.25,
        ("actor_seconds_total", "executing"): 4.0,
        ("actor_seconds_total", "starved"): 1.0,
        ("device_seconds_total", ""): 2.0,
        ("gpu_busy_share", "gpu-node"): 0.5,
        ("actors", ""): 2.0,
        ("shards_pending", ""): 8.0,
        ("shards_in_flight", ""): 4.0,
    }
    assert scraped("test-run", lambda found: found == wanted) == wanted
    metrics.close()
    ended = {**wanted, ("gpu_busy_share", "gpu-node"): 0.0}
    ended |= {(name, ""): 0.0 for name in ("actors", "shards_pending", "shards_in_flight")}
    assert scraped("test-run", lambda found: found == ended) == ended


class Noted:
    """Keeps what a counter or gauge of Ray's is told."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def inc(self, value: float, tags: object = None) -> None:
        self.told.append(value)

    def set(self, value: float, tags: object = None) -> None:
        self.told.append(value)


def test_ray_is_called_once_a_second_however_many_shards_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    metrics = JobMetrics("run", clock=lambda: now_s)
    rows, actors = Noted(), Noted()
    monkeypatch.setattr(metrics, "_rows", rows)
    monkeypatch.setattr(metrics, "_actors", actors)
    for shard in range(1000):
        now_s = shard / 250
        metrics.shard_done(3, 0)
        metrics.state(actors=5, failures=0, pending=1000 - shard, in_flight=10)
    assert len(actors.told) == 4
    metrics.close()
    assert sum(rows.told) == 3000
    assert actors.told[-1] == 0
