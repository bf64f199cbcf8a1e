"""The simulated cluster drives the real scheduler to its end, and every mishap it claims does happen."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trtfleet.datasets.shards import DEFAULT_SHARD_BYTES, plan_shards

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports modules of the benchmark, which find each other by the script's folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


def run(load: Any, *, resumed: float = 0.0, **rates: float) -> dict[str, Any]:
    """One job in a cluster without mishaps but those that are named."""
    case: ModuleType = load("scale_case")
    none = {"failed_starts", "deaths_an_hour", "lost_at_once", "slow_actors", "frozen_actors", "errors"}
    calm = load("scale_world").Rates(**dict.fromkeys(none, 0.0) | rates)
    found: dict[str, Any] = case.measure_case(case.Case(shards=400, actors=20, resumed=resumed), 3, calm)
    return found


@pytest.mark.parametrize("shards", [10, 50, 500])
def test_the_dataset_is_cut_into_so_many_shards(load: Any, shards: int) -> None:
    files = load("scale_dataset").dataset_of(shards)
    planned = plan_shards(files, DEFAULT_SHARD_BYTES)
    assert len({shard.id for shard in planned}) == len(planned) == shards
    assert sum(shard.rows for shard in planned) == sum(group.rows for _, groups in files for group in groups)


def test_shards_are_packed_and_cut_as_well_as_taken_whole(load: Any) -> None:
    planned = plan_shards(load("scale_dataset").dataset_of(50), DEFAULT_SHARD_BYTES)
    assert {len(shard.segments) for shard in planned} == {1, 2}
    assert any(shard.segments[0].offset for shard in planned)


def test_a_dataset_of_no_whole_files_is_refused(load: Any) -> None:
    with pytest.raises(SystemExit, match="multiple of 10, got 15"):
        load("scale_dataset").dataset_of(15)


def test_in_a_calm_cluster_every_shard_is_dispatched_once(load: Any) -> None:
    found = run(load)
    happened = found["happened"]
    assert happened["Dispatch"] == happened["ShardDone"] == 400
    assert happened["StartActor"] == happened["ActorReady"] == 20
    assert not happened.keys() & {"ActorDied", "ActorFailedToStart", "ShardError", "died", "frozen", "again"}


def test_the_virtual_time_is_about_what_the_work_takes(load: Any) -> None:
    ideal_s = 400 * 20.0 / 20
    assert ideal_s < run(load)["virtual_s"] < 1.5 * ideal_s


def test_actors_that_die_are_noticed_and_replaced(load: Any) -> None:
    found = run(load, deaths_an_hour=2.0)
    happened = found["happened"]
    assert happened["died"] > 0
    assert happened["StartActor"] > 20
    assert happened["Dispatch"] > 400


def test_a_loss_of_many_at_once_takes_their_share(load: Any) -> None:
    happened = run(load, lost_at_once=0.25)["happened"]
    assert happened["died"] == 5
    assert happened["ActorDied"] == happened["again"] == 10


def test_failed_starts_are_tried_again(load: Any) -> None:
    happened = run(load, failed_starts=0.2)["happened"]
    assert happened["ActorFailedToStart"] > 0
    assert happened["ActorReady"] == 20


def test_errors_bring_further_attempts(load: Any) -> None:
    happened = run(load, errors=0.02)["happened"]
    assert happened["ShardError"] == happened["again"] > 0


def test_frozen_actors_lose_to_twins(load: Any) -> None:
    happened = run(load, frozen_actors=0.1)["happened"]
    assert happened["frozen"] > 0
    assert happened["again"] == 2 * happened["frozen"]


def test_slow_actors_do_not_hold_the_end(load: Any) -> None:
    found = run(load, slow_actors=0.2, slow_factor=8.0)
    # What is left of the cluster's speed when a fifth of it is an eighth as fast.
    assert found["virtual_s"] < 1.1 * run(load)["virtual_s"] / (0.8 + 0.2 / 8)
    assert found["happened"]["Dispatch"] == 400 + found["happened"].get("again", 0)


def test_a_resumed_job_does_the_rest(load: Any) -> None:
    found = run(load, resumed=0.5)
    assert found["happened"]["Dispatch"] == 200
    assert found["virtual_s"] < run(load)["virtual_s"]


def test_the_same_seed_gives_the_same_run(load: Any) -> None:
    wild = {"deaths_an_hour": 2.0, "lost_at_once": 0.2, "errors": 0.02, "frozen_actors": 0.05}
    first, second = run(load, **wild), run(load, **wild)
    assert first["happened"] == second["happened"]
    assert first["virtual_s"] == second["virtual_s"]


def test_a_job_that_fails_is_an_error(load: Any) -> None:
    with pytest.raises(RuntimeError, match=r"kind=.*ACTOR_STARTS.* after 0 shards"):
        run(load, failed_starts=1.0)


def test_goals_are_held_against_the_largest_fresh_case(load: Any, tmp_path: Path) -> None:
    def case(shards: int, resumed: float, memory_mib: float, error: str = "") -> dict[str, Any]:
        values = {"process_cpu_us": 199.9, "peak_mib": memory_mib, "first_dispatch_s": 30.0}
        return {"shards": shards, "resumed": resumed, "error": error, **values}

    cases = [case(10, 0.0, 1.0), case(20, 0.0, 2000.0), case(30, 0.5, 3.0), case(40, 0.0, 4.0, "died")]
    results: dict[str, Any] = {"cases": cases, "real": {}, "is_full_size": True}
    load("scale_report").save(results, tmp_path / "found.json")
    goals = json.loads((tmp_path / "found.json").read_text())["goals"]
    assert [goal["value"] for goal in goals] == [199.9, 2000.0, 30.0]
    assert [goal["is_met"] for goal in goals] == [True, False, False]


def test_the_command_prints_tables_and_goals(tmp_path: Path) -> None:
    script = [
        sys.executable,
        str(BENCHMARKS / "scale_sim.py"),
        "--quick",
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [case["error"] for case in found["cases"]] == ["", ""]
    assert {name: part["count"] for name, part in found["real"].items()} == {"footers": 20, "records": 100}
    assert all(case["peak_mib"] > case["imports_mib"] > 0 for case in found["cases"])
    assert "goal < 200 us" in done.stdout
    assert "not the full size" in done.stdout


def test_a_part_that_fails_is_a_row_of_the_table(load: Any, tmp_path: Path, capsys: Any) -> None:
    command = load("scale_sim")
    command.QUICK_SIZES = ((15, 2, 0.0), (20, 2, 0.0))
    arguments = ["--quick", "--skip", "footers", "--skip", "records", "--json", str(tmp_path / "found.json")]
    assert command.main(arguments) == 1
    assert "| 15 | 2 | failed: shards must be a positive multiple of 10, got 15 |" in capsys.readouterr().out


@pytest.mark.ray
def test_calls_through_a_real_ray_are_counted(tmp_path: Path) -> None:
    order = json.dumps({"real": "calls", "count": 20})
    script = [sys.executable, str(BENCHMARKS / "scale_sim.py"), "--child", order]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] == 20
    assert found["cpu_us"] > 0
    assert found["wall_us"] > 0
