"""A driver at scale: the real planner, scheduler and books against actors that only pretend to work.

    python benchmarks/scale_sim.py                # everything, some minutes
    python benchmarks/scale_sim.py --quick        # a quick look; says nothing about the goals

A case is a process of its own. It makes up the footers of a dataset, plans it, and runs the job to its last
commit on a virtual clock, through staggered and failed starts, deaths, a loss of many actors at once,
stragglers, frozen actors and transient errors. What a driver does besides is measured with the real thing on
a small scale: calls of actors through Ray, reading footers, reading commit records. `docs/scale.md` says what
the figures mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scale_report import lines_of, save

HERE = Path(__file__).resolve()
SIZES = ((10_000, 100, 0.0), (100_000, 1_000, 0.0), (1_000_000, 10_000, 0.0), (1_000_000, 10_000, 0.5))
QUICK_SIZES = ((1_000, 20, 0.0), (2_000, 40, 0.5))
REAL = {"calls": 3_000, "footers": 500, "records": 10_000}
QUICK_REAL = {"footers": 20, "records": 100}
CASE_LIMIT_S = 1800


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all that is asked for; 1 where a part failed or a goal was missed at full size."""
    options = _parser().parse_args(argv)
    if options.child:
        print(json.dumps(_child(json.loads(options.child))))
        return 0
    results: dict[str, Any] = {
        "is_full_size": not options.quick,
        "seed": options.seed,
        "cases": [],
        "real": {},
    }
    for shards, actors, resumed in QUICK_SIZES if options.quick else SIZES:
        if options.most_shards and shards > options.most_shards:
            continue
        case = {"shards": shards, "actors": actors, "resumed": resumed}
        _say(f"{shards:,} shards, {actors:,} actors{', resumed' if resumed else ''} ...")
        results["cases"].append(case | _in_process({"case": case, "seed": options.seed}))
        save(results, options.json)
    for name, count in (QUICK_REAL if options.quick else REAL).items():
        if name not in options.skip:
            _say(f"{name}, {count:,} ...")
            results["real"][name] = _in_process({"real": name, "count": count})
            save(results, options.json)
    print("\n".join(lines_of(results)))
    failed = [part for part in (*results["cases"], *results["real"].values()) if part["error"]]
    missed = [goal for goal in results.get("goals", ()) if not goal["is_met"]]
    return 1 if failed or (missed and not options.quick) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, without Ray")
    parser.add_argument("--most-shards", type=int, default=0, help="leave larger cases out")
    parser.add_argument("--skip", action="append", default=[], choices=REAL, help="leave this out")
    parser.add_argument("--seed", type=int, default=1, help="of the simulated cluster")
    parser.add_argument("--json", type=Path, default=Path("scale_sim.json"), help="where the results go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def _in_process(order: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one part in a fresh process, so that its memory and its garbage are its own."""
    try:
        done = subprocess.run(
            [sys.executable, str(HERE), "--child", json.dumps(order)],
            capture_output=True,
            text=True,
            timeout=CASE_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {CASE_LIMIT_S} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return {"error": "", **json.loads(done.stdout.splitlines()[-1])}


def _child(order: Mapping[str, Any]) -> dict[str, Any]:
    if "case" in order:
        from scale_case import Case, measure_case

        return measure_case(Case(**order["case"]), order["seed"])
    import scale_real

    measure = {
        "calls": scale_real.measure_calls,
        "footers": scale_real.measure_footers,
        "records": scale_real.measure_records,
    }
    return dict(measure[order["real"]](order["count"]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
