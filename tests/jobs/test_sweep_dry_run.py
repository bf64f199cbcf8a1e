"""What a sweep would do, without Ray and without a trace of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import trtfleet
from trtfleet.errors import FingerprintError
from trtfleet.jobs.sweep.dry_run import SweepDryRun, dry_run_sweep
from trtfleet.jobs.sweep.job import run_sweep
from trtfleet.jobs.sweep.spec import SweepSpec
from trtfleet.tests.jobs.conftest import Ran

QUICK = {"repeats": 1, "runs": 10, "seconds": 0.02, "warm_up_s": 0.1}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))


def planned(model: Path, out: Path, **options: Any) -> SweepDryRun:
    return dry_run_sweep(SweepSpec.of({"models": model, "out": out, **QUICK, **options}))


def test_it_tells_every_trial_and_leaves_nothing(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    model = linear_model(batch=8)
    before = sorted(tmp_path.rglob("*"))
    was_connected = ray.is_initialized()
    found = planned(
        model, tmp_path / "out", batch_sizes="4,9", backends="onnxruntime-cpu,tensorrt", repeats=2
    )
    assert len(found.trials) == 4
    (group,) = found.groups
    assert (group.device.name, len(group.units), group.wanted.gpus) == ("cpu", 2, 0)
    assert {reason: len(trials) for reason, trials in found.problems.items()} == {
        "batch size 9 exceeds the model's fixed batch size 8": 2,
        "the cluster has no GPU, which tensorrt needs": 1,
    }
    assert (found.is_begun, found.done) == (False, 0)
    assert sorted(tmp_path.rglob("*")) == before
    assert ray.is_initialized() == was_connected


@pytest.mark.usefixtures("ray_session")
def test_what_was_measured_would_not_be_again(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    model, out = linear_model(), tmp_path / "out"
    run_sweep(SweepSpec.of({"models": model, "out": out, **QUICK, "batch_sizes": "1,2"}))
    lost = next(out.glob("_trtfleet/g0001/commits/*.json"))
    lost.unlink()
    before = sorted(out.rglob("*"))
    found = planned(model, out, batch_sizes="1,2")
    assert (found.is_begun, found.done, [len(group.units) for group in found.groups]) == (True, 1, [1])
    assert sorted(out.rglob("*")) == before
    with pytest.raises(FingerprintError, match="batch_sizes was"):
        planned(model, out, batch_sizes="4")
    assert planned(model, out, batch_sizes="4", overwrite=True).done == 0


def test_the_command_tells_it_in_words_and_as_json(
    linear_model: Callable[..., Path], tmp_path: Path, command: Callable[..., Ran]
) -> None:
    flags = ["sweep", linear_model(), "-o", tmp_path / "out", "--batch-sizes", "1,2", "--dry-run"]
    ran = command(*flags)
    assert ran.code == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "sweep     2 trials x 3 = 6 measurements"
    assert lines[-1] == "nothing was run"
    found = json.loads(command(*flags, "--json").stdout)
    assert [trial["batch_size"] for trial in found["trials"]] == [1, 2]
    assert found["measurements"] == {"done": 0, "missing": 6}


def test_the_package_itself_plans_sweeps(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    found = trtfleet.sweep(linear_model(), tmp_path / "out", dry_run=True, batch_sizes=[1, 2])
    assert isinstance(found, trtfleet.SweepDryRun)
    assert len(found.trials) == 2
