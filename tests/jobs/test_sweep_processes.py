"""Sweeps in processes of their own: killed and resumed, and on a cluster with two kinds of GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from trtfleet.tests.jobs.test_sweep import commits, sweep


@pytest.mark.usefixtures("ray_session")
def test_a_killed_sweep_goes_on_where_it_was(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    import ray

    model, out = linear_model(), tmp_path / "out"
    sizes = ",".join(map(str, range(1, 6)))
    flags = [
        "--batch-sizes",
        sizes,
        "--repeats",
        "1",
        "--runs",
        "10",
        "--seconds",
        "0.02",
        "--warm-up",
        "0.1",
    ]
    address = ray.get_runtime_context().gcs_address
    arguments = ["sweep", str(model), "-o", str(out), "--cpus-per-actor", "4", "--address", address, *flags]
    killed = subprocess.Popen(
        [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    try:
        deadline_s = time.monotonic() + 60
        while not commits(out):
            assert killed.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    kept = commits(out)
    summary = sweep(model, out, batch_sizes=sizes, cpus_per_actor=4)
    assert summary.before == len(kept)
    assert [row.trial.batch_size for row in summary.rows] == list(range(1, 6))
    assert summary.failed == []
    assert kept.items() <= commits(out).items()


TWO_KINDS = """
import sys
import ray
from ray.cluster_utils import Cluster
from trtfleet.jobs.progress import Silent
from trtfleet.jobs.sweep.job import run_sweep
from trtfleet.jobs.sweep.spec import SweepSpec

class Lines(Silent):
    def say(self, text):
        sys.stdout.write(text + "\\n")
        sys.stdout.flush()
    def tell(self, event, text="", *, level="info", **facts):
        super().tell(event, text, level=level, **facts)
        if event in ("actor_ready", "trial_done"):
            self.say(f"{event} {facts['actor']} {facts['pid']}")

def has(kind):
    return {"num_cpus": 1, "num_gpus": 1, "resources": {f"accelerator_type:{kind}": 1}}

head = {**has("A1"), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(**has("B2"))
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
options = {"repeats": 1, "runs": 10, "seconds": 0.02, "warm_up_s": 0.1, "batch_sizes": "1,2"}
run_sweep(SweepSpec.of({"models": sys.argv[1], "out": sys.argv[2], **options}), Lines())
"""


def test_kinds_of_gpus_are_measured_at_the_same_time(
    linear_model: Callable[..., Path], tmp_path: Path, without_ray: dict[str, str]
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", TWO_KINDS, str(linear_model()), str(out)],
        capture_output=True,
        text=True,
        env=without_ray,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if " measurements on " in line or line.startswith("[")]
    # Both begin before either has measured anything.
    assert sorted(said[:2]) == [
        "2 measurements on A1, 1 at once, each with 1 CPU and 1 GPU",
        "2 measurements on B2, 1 at once, each with 1 CPU and 1 GPU",
    ]
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert [(row["device"], row["batch_size"], row["error"]) for row in rows] == [
        ("A1", 1, None),
        ("A1", 2, None),
        ("B2", 1, None),
        ("B2", 2, None),
    ]
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(("actor_", "trial_"))]
    ready = [(actor, pid) for event, actor, pid in told if event == "actor_ready"]
    measured = {(actor, pid) for event, actor, pid in told if event == "trial_done"}
    assert len({actor for actor, _ in ready}) == len(ready) >= 2
    assert measured <= set(ready)
