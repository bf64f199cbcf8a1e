"""The job's counters, as Prometheus would scrape them."""

from __future__ import annotations

import time
import urllib.request

import pytest
from trtfleet.cluster.metrics import JobMetrics


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_counters_reach_the_scrape_endpoint() -> None:
    import ray

    metrics = JobMetrics("test-job")
    metrics.shard_done(7, 2)
    metrics.shard_done(5, 0)
    metrics.state(3, 1)
    metrics.state(2, 1)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {"rows": 12, "bad_rows": 2, "shards": 2, "failures": 1}
    found: dict[str, float] = {}
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and len(found) < len(wanted) + 1:
        text = urllib.request.urlopen(url, timeout=5).read().decode()
        for line in text.splitlines():
            if 'job="test-job"' in line and line.startswith("ray_trtfleet_"):
                name, value = line.partition("{")[0], line.rpartition(" ")[2]
                found[name.removeprefix("ray_trtfleet_")] = float(value)
        time.sleep(0.5)
    assert found == {**{f"{name}_total": value for name, value in wanted.items()}, "actors": 2}
