"""Measures trtfleet against Ray Data and a plain loop: the same rows, network and machine, taking turns.

    pip install . pandas fsspec
    python benchmarks/score_vs_peers.py                      # all of it, full size
    python benchmarks/score_vs_peers.py --rows-scale 0.01    # a quick look
    python benchmarks/score_vs_peers.py --only digits --only overhead --rounds 5

Prints a table and the goals, and writes every single time to a JSON file. README.md explains the workloads.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import trtfleet
from peers import RAY_DATA, Peer, all_peers, cores, start_ray, thread_settings
from report import fold_workload, lines_of, machine, save
from verify import Reference
from workloads import WORKLOADS, Case, Workload, make_case, make_scalars

OVERHEAD = "overhead"
OVERHEAD_SHARDS = 1_000
OVERHEAD_ROWS = 100


@dataclass(kw_only=True)
class Times:
    """What one peer needed, round by round.

    Attributes:
        seconds: Of its successful runs.
        error: Why it was given up; empty when it was not.
        rows: Rows it wrote.
        checksum: Sum of its logits, the last run's.
        deviation: Largest difference from the first peer's logits.
    """

    seconds: list[float] = field(default_factory=list)
    error: str = ""
    rows: int = 0
    checksum: float = 0.0
    deviation: float = 0.0


def main() -> int:
    """Runs the benchmark; returns 1 when a peer failed or wrote other rows than the rest, else 0."""
    options = _options()
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": machine(),
        "options": {"rounds": options.rounds, "rows_scale": options.rows_scale, "cores": cores()},
        "workloads": {},
    }
    with start_ray():
        for name in options.only or [*WORKLOADS, OVERHEAD]:
            if name == OVERHEAD:
                shards = max(2, round(OVERHEAD_SHARDS * options.rows_scale))
                results[OVERHEAD] = _overhead(work, shards, options)
            else:
                results["workloads"][name] = _workload(WORKLOADS[name], work, options)
            save(results, Path(options.json))
    print("\n".join(lines_of(results)))
    print(f"\nevery single time: {options.json}")
    entries = [*results["workloads"].values(), results.get(OVERHEAD, {})]
    failed = [peer for entry in entries for peer in entry.get("peers", [entry]) if peer.get("error")]
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of every peer (default 3)")
    parser.add_argument("--rows-scale", type=float, default=1.0, help="fraction of the full number of rows")
    parser.add_argument(
        "--only", action="append", choices=[*WORKLOADS, OVERHEAD], help="run this one; repeatable"
    )
    folder = Path(tempfile.gettempdir()) / "trtfleet-benchmarks"
    parser.add_argument("--work", default=str(folder), help=f"keeps datasets between runs (default {folder})")
    parser.add_argument("--json", default="score_vs_peers.json", help="where the results go")
    parser.add_argument("--limit-s", type=float, default=900.0, help="after which a run counts as hanging")
    parser.add_argument("--settle-s", type=float, default=1.0, help="pause before each run (default 1)")
    options = parser.parse_args()
    if options.rounds < 1 or options.rows_scale <= 0:
        parser.error("--rounds must be >= 1 and --rows-scale > 0")
    return options


def _workload(workload: Workload, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    _say(f"{workload.name}: making {max(1, round(workload.rows * options.rows_scale)):,} rows")
    case = make_case(workload, work, options.rows_scale, thread_settings())
    peers = all_peers()
    times = {peer.name: Times() for peer in peers}
    reference = Reference(case.rows)
    for turn in range(options.rounds):
        for peer in peers if turn == 0 else _worth_repeating(peers, times):
            _take_turn(peer, case, times[peer.name], reference, work, options)
            _say(f"{workload.name}, round {turn + 1}: {peer.name}: {_last(times[peer.name])}")
    return fold_workload(case, [(peer, vars(times[peer.name])) for peer in peers], options.rows_scale == 1)


def _worth_repeating(peers: list[Peer], times: dict[str, Times]) -> Iterator[Peer]:
    """Leaves out peers that failed and, after the first round, all but the fastest settings of Ray Data."""
    alive = [peer for peer in peers if not times[peer.name].error]
    fastest = min(
        (peer for peer in alive if peer.kind == RAY_DATA),
        key=lambda peer: times[peer.name].seconds[0],
        default=None,
    )
    return (peer for peer in alive if peer.kind != RAY_DATA or peer is fastest)


def _take_turn(
    peer: Peer, case: Case, times: Times, reference: Reference, work: Path, options: argparse.Namespace
) -> None:
    with _fresh_folder(work) as out:
        try:
            seconds = _timed(partial(peer.run, case, out), options)
            times.rows, times.checksum, times.deviation = reference.check(out)
            times.seconds.append(seconds)
        except Exception as error:
            times.error = _one_line(error)


def _overhead(work: Path, shards: int, options: argparse.Namespace) -> dict[str, Any]:
    """What a shard costs a job beside the scoring: an empty network on 1 and on many shards, taking turns."""
    cases = {count: make_scalars(work, count, OVERHEAD_ROWS) for count in (1, shards)}
    seconds: dict[int, list[float]] = {count: [] for count in cases}
    error = ""
    for turn, (count, files) in product(range(options.rounds), cases.items()):
        with _fresh_folder(work) as out:
            try:
                seconds[count].append(_timed(partial(_score_empty, *files, out, count), options))
            except Exception as problem:
                error = _one_line(problem)
                break
        _say(f"{OVERHEAD}, round {turn + 1}: {count:,} shards: {seconds[count][-1]:.2f} s")
    result: dict[str, Any] = {"shards": shards, "rows_a_shard": OVERHEAD_ROWS, "error": error}
    result["seconds"] = {str(count): found for count, found in seconds.items()}
    if not error:
        few, many = (statistics.median(found) for found in seconds.values())
        result["ms_a_shard"] = 1000 * (many - few) / (shards - 1)
    return result


def _score_empty(model: Path, data: Path, out: Path, shards: int) -> None:
    summary = trtfleet.score(model, data, out, shard_bytes=4 * OVERHEAD_ROWS, actors=cores())
    if summary.shards != shards:
        raise RuntimeError(f"the job had {summary.shards:,} shards instead of {shards:,}")


def _timed(run: Callable[[], None], options: argparse.Namespace) -> float:
    """Runs it after ``settle_s``, at most for ``limit_s``, and returns the seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not finished after {options.limit_s:g} s")

    gc.collect()
    time.sleep(options.settle_s)
    before_handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, options.limit_s)
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before_handler)


@contextmanager
def _fresh_folder(work: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="out-", dir=work))
    try:
        yield folder / "scored"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _last(times: Times) -> str:
    return f"failed: {times.error}" if times.error else f"{times.seconds[-1]:.2f} s"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
