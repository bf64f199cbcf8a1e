"""From what the tests of faults counted to ``docs/reliability.md``."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["main", "report"]

_LIBRARIES = ("obstore", "pyarrow", "moto", "onnxruntime")

_TEXTS = {
    "crash points": """
## Killed at every step

A process ends with `os._exit` before, after, or on local disk in the middle of one operation on storage,
half of what it was writing left behind; then the same command runs again. *Crashes* is how many processes
ended so, *resumed* how many outputs were then finished. "Three times in a row" ends the resuming process,
too, each at a point drawn from a seed. After each death a reader's view is checked: no final file without
its whole, no `_SUCCESS` that does not fit the files, no engine that does not verify, no commit whose part
is not there.
""",
    "drivers in turns": """
## Several drivers at once, one step each

Two and three drivers of the same job take turns in a random order, drawn from a seed: each does one
operation on storage, then another driver does one.
""",
    "drivers at once, clocks days apart": """
## Several drivers at once, clocks days apart

Two and three processes start together on the same output or cache; the clock of one is two days slow,
that of another three days fast. In some of the runs one of them is killed on the way. An engine is built
once, by whichever of them.
""",
    "drivers frozen while another overwrites": """
## Frozen while another overwrites

A driver stops before one of its steps, another finishes a different job with `--overwrite` in the same
place, and the first goes on; or both stop in the middle of their swaps. On disk, a reader who looks after
every step must see files of one job alone, and all of them where `_SUCCESS` is. In the end the later result
must stand, whole, with its `_SUCCESS`.
""",
    "publications pruned by a wrong clock": """
## A prune that takes a builder for dead

`trtfleet cache prune` runs on a machine whose clock is an hour ahead, before each step of a publication.
The entry is whole in the end.
""",
    "one fault": """
## One request in a run goes wrong

S3 over HTTP, through a proxy: one request is dropped before or after it is carried out, delayed, answered
with 500 (before or after it is carried out), 503 or SlowDown, or not answered until the client gives up.
*Errors* counts the runs that ended with an error and were finished by a second call; all others got over
the fault by themselves.
""",
    "lost answers to put-if-absent": """
## The answer to a commit is lost

Whether the commit happened is then unknown. Each run must end well at the first call, without doing
anything twice.
""",
    "storms": """
## One request in six goes wrong

Faults of every kind, at random from a seed. A run that fails is repeated, through the same storm.
""",
    "processes": """
## Processes, nodes and disks

Whole jobs on Ray: a head node and worker nodes, all of one machine. *Runs* met what the first column says;
*resumed* are those that it ended, with one clear error or by death, and that the same command finished
later. All others got over it by themselves. The data of each is then, byte for byte, that of a run that
nothing disturbed.
""",
    "soak": """
## Soak

One job after the other on two worker nodes, while at moments drawn from a seed an actor is killed (SIGKILL,
SIGSEGV) or frozen for up to a minute, a node is lost with all its processes and another joins, the command
is killed and started again, or started once more beside itself; about every other job replaces the result of
the one before with `--overwrite`. Every finished output is compared with what numpy computes, row by row,
and so is its quarantine; nothing may be left in its hidden folder. A second command, which shares no work
with the first, is what most repeated attempts come from. The ordinary test run soaks for half a minute,
`scripts/soak` for as long as it is told to.
""",
}

# Of a soak, in this order.
_SOAKED = {
    "seed": "seed",
    "minutes": "minutes",
    "jobs": "jobs brought to their end",
    "overwritten": "... of these over an earlier result",
    "rows": "rows",
    "shards": "shards",
    "killed": "actors killed",
    "crashed": "actors that crashed",
    "frozen": "actors frozen and woken",
    "nodes_lost": "nodes lost",
    "drivers_killed": "commands killed",
    "drivers_together": "commands started beside a running one",
    "gave_up": "commands that gave up with their exit code, and were repeated",
    "retries": "attempts at shards beyond the first",
    "looks": "looks at a complete result while the next one was made",
    "lost": "rows lost",
    "duplicated": "rows that came twice",
}

_COLUMNS = {
    "fault": "what happens",
    "protocol": "protocol",
    "storage": "storage",
    "points": "points",
    "drivers": "drivers",
    "crashes": "crashes",
    "resumes": "resumed",
    "faults": "faults",
    "frozen": "frozen",
    "killed": "killed",
    "runs": "runs",
    "resumed": "resumed",
    "errors": "errors",
    "lost": "lost",
    "duplicated": "duplicated",
}

_COUNTED = {
    *("crashes", "resumes", "resumed", "faults", "frozen", "killed", "runs", "errors"),
    *("lost", "duplicated"),
}

_HEAD = """# What was broken on purpose, and what came of it

`scripts/reliability` runs the tests in `tests/faults` and writes this page from what they counted. The
ordinary test run takes a sample of the steps at which a process is killed; where the column *points* says
so, every step was taken. Nothing is simulated: the protocols are the product's own, on a real file system
and on an S3 server (moto) over HTTP, in real processes; alone at first, and as whole jobs on Ray in the
last sections.

| | |
|---|--:|
| processes killed | {killed:,} |
| requests that went wrong | {faults:,} |
| runs of several drivers | {together:,} |
| runs brought to their end after all that | {ended:,} |
| rows, tables, engines and records lost | {lost:,} |
| ... that came twice | {duplicated:,} |

*Commit and merge* is a scoring job: attempts write parts and quarantine files, commit, merge, publish.
*Over an earlier result* is the same with `--overwrite`. *Cache publish* takes the lease on an engine,
builds and publishes it. *Calibration commit* commits the statistics of units, stores the table and
removes the statistics. *Sweep record* commits each measurement and writes the results. Every result is
compared, by digest, with that of a run that nothing disturbed, and so are the names of what is left
beside it.
"""

_TAIL = """
## What this does not show

- **A machine that loses power.** Files are not flushed to disk before they count as written: what a
  process wrote survives the process, not necessarily the machine. On S3 an answered request is durable.
- **Two instants of `--overwrite` on S3**, which has no compare-and-delete and whose copies take time. A
  driver frozen between looking at an earlier `_SUCCESS` and deleting it, while another finishes, deletes the
  later `_SUCCESS`. It puts it back when it wakes; if it dies just then, no file is lost, and the same command
  without `--overwrite` writes it again. And a copy that the server has begun may end after a later job has
  finished its whole swap: the old file is then visible until the command is repeated. On a file system
  nothing of the kind is left.
- **Many calibrations of the same at once.** The one that ends first removes the statistics of all; another
  begins again once by itself, and stops with an error when that happens to it twice. The same command again
  does the rest.
- **Unfinished uploads on S3.** A process that dies while it uploads leaves a multipart upload that nobody
  sees but that is billed. Set a lifecycle rule that ends such uploads after a day.
- **Servers other than moto**, and networks that fail in the middle of an answer's body.
"""


def report(figures: Sequence[Mapping[str, Any]]) -> str:
    """The page, as Markdown."""

    def total(name: str, *kinds: str) -> int:
        return sum(one.get(name, 0) for one in figures if not kinds or one["kind"] in kinds)

    together = [kind for kind in _TEXTS if kind.startswith("drivers")]
    parts = [
        _HEAD.format(
            killed=sum(map(total, ("crashes", "killed", "crashed", "drivers_killed"))),
            faults=total("faults"),
            together=total("runs", *together) + total("frozen", *together),
            ended=total("resumes") + total("runs") + total("frozen", *together) + total("jobs"),
            lost=total("lost"),
            duplicated=total("duplicated"),
        ),
        f"\n{datetime.now(UTC):%Y-%m-%d}; Python {platform.python_version()}, {_versions()}; "
        f"{os.cpu_count()} CPUs.\n",
    ]
    for kind, text in _TEXTS.items():
        members = [one for one in figures if one["kind"] == kind]
        if members:
            parts += [text, "\n", (_soaks if kind == "soak" else _table)(members)]
    return "".join(parts) + _TAIL


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)


def _table(members: Sequence[Mapping[str, Any]]) -> str:
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in members:
        key = tuple(one.get(name) for name in ("fault", "protocol", "storage", "drivers"))
        row = merged.setdefault(key, {**one, **dict.fromkeys(_COUNTED & set(one), 0)})
        for name in _COUNTED & set(one):
            row[name] += one[name]
    names = [name for name in _COLUMNS if any(name in row for row in merged.values())]
    lines = ["| " + " | ".join(_COLUMNS[name] for name in names) + " |"]
    words = {"fault", "protocol", "storage", "points"}
    lines.append("|" + "|".join("---" if name in words else "--:" for name in names) + "|")
    lines += ["| " + " | ".join(_cell(row.get(name, 0)) for name in names) + " |" for row in merged.values()]
    return "\n".join(lines) + "\n"


def _soaks(members: Sequence[Mapping[str, Any]]) -> str:
    """One column a soak, the longest first."""
    ordered = sorted(members, key=lambda one: -one["minutes"])
    # A seed is a name.
    ordered = [{**one, "seed": str(one["seed"])} for one in ordered]
    lines = ["| |" + " |" * len(ordered), "|---|" + "--:|" * len(ordered)]
    for name, text in _SOAKED.items():
        lines.append(f"| {text} | " + " | ".join(_cell(one[name]) for one in ordered) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Writes the page: ``report FIGURES PAGE``."""
    figures, page = sys.argv[1:]
    lines = Path(figures).read_text().splitlines()
    Path(page).write_text(report([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
