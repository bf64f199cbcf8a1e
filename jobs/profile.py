"""An actor's trace as a file that Perfetto and Chrome open: the Trace Event Format."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from ..datasets.storage import foreign_errors
from ..errors import OutputError
from ..trt_actors.trace import TraceEvent

__all__ = ["check_trace_path", "trace_document", "write_trace"]

_HINT = "name a file in a folder that exists and may be written to"
_ORDER = ("reader", "decoder", "feeder", "engine", "H2D", "compute", "D2H", "writer")
# Times of a device are differences of float32 milliseconds, off by a tenth of one after half an hour: what
# overlaps by less does not overlap.
_GRANULARITY_NS = 200_000


def check_trace_path(path: str | os.PathLike[str]) -> None:
    """Refuses, before the work starts, a path that ``write_trace`` could not write to.

    Raises:
        OutputError: It is no local file's name, its folder is missing, or writing is not permitted.
    """
    target = os.fspath(path)
    folder = os.path.dirname(os.path.realpath(target))
    reason = ""
    if "://" in target:
        reason = "a trace is written on this machine alone"
    elif os.path.exists(target) and not os.path.isfile(target):
        reason = "it is not a file"
    elif not os.path.isdir(folder):
        reason = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"the folder {folder} is not writable"
    if reason:
        raise OutputError(f"cannot write the trace {target}: {reason}", _HINT)


def write_trace(
    path: str | os.PathLike[str],
    actor_name: str,
    events: Iterable[TraceEvent],
    *,
    dropped: int = 0,
    pid: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Writes what one actor's tracer kept; the file is replaced as a whole or not at all.

    Args:
        path: A local file.
        actor_name: What the process is called in the viewer.
        events: ``Tracer.events()``.
        dropped: ``Tracer.dropped``; told in the file and in the answer.
        pid: The actor's process.
        facts: What else to keep with the trace: plain values by name.

    Returns:
        One line for the user: what was written, and what to open it with.

    Raises:
        OutputError: The file cannot be written.
    """
    kept = list(events)
    document = trace_document(actor_name, kept, dropped=dropped, pid=pid, facts=facts)
    check_trace_path(path)
    # Through a link, the file that it points to is replaced.
    target = os.path.realpath(path)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"
    with foreign_errors(OutputError, f"cannot write the trace {os.fspath(path)}", _HINT):
        try:
            with open(temporary, "x", encoding="ascii") as file:
                # One event a line, for those who search instead of looking.
                lines = ",\n".join(
                    json.dumps(event, allow_nan=False) for event in document.pop("traceEvents")
                )
                file.write(f'{json.dumps(document, allow_nan=False)[:-1]}, "traceEvents": [\n{lines}\n]}}\n')
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    lost = f", {dropped:,} earlier ones were dropped" if dropped else ""
    return (
        f"trace of {actor_name} with {len(kept):,} events{lost} in {os.fspath(path)}: "
        "open it in ui.perfetto.dev or chrome://tracing"
    )


def trace_document(
    actor_name: str,
    events: Sequence[TraceEvent],
    *,
    dropped: int = 0,
    pid: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the JSON object of the Trace Event Format.

    Times are microseconds since the first event. Complete events of a track nest or are disjoint: what
    overlaps on one track, spans of a generator for example, is laid on further tracks of the same name.
    """
    first_s = min((event.start_s for event in events), default=0.0)
    tracks: dict[str, list[_Interval]] = defaultdict(list)
    found: list[dict[str, Any]] = []
    for event in events:
        start_ns = round((event.start_s - first_s) * 1e9)
        if event.phase == "C":
            found.append(
                {
                    "ph": "C",
                    "name": event.name,
                    "pid": pid,
                    "tid": 0,
                    "ts": start_ns / 1000,
                    "args": _plain(event.args),
                }
            )
        else:
            end_ns = round((event.start_s + event.duration_s - first_s) * 1e9)
            tracks[event.track].append(_Interval(start_ns, end_ns, event))
    threads: list[str] = []
    for track in sorted(tracks, key=_rank):
        for number, lane in enumerate(_lanes(tracks[track]), 1):
            threads.append(track if number == 1 else f"{track} ({number})")
            found.extend(interval.as_json(pid, len(threads)) for interval in lane)
    return {
        "displayTimeUnit": "ms",
        "otherData": {"actor": actor_name, "dropped_events": dropped, **_plain(facts or {})},
        "traceEvents": [*_names(actor_name, pid, threads), *sorted(found, key=lambda event: event["ts"])],
    }


def _text(document: Mapping[str, Any]) -> str:
    # One event a line, for those who search instead of looking.
    events = ",\n".join(json.dumps(event, allow_nan=False) for event in document["traceEvents"])
    rest = json.dumps(
        {name: part for name, part in document.items() if name != "traceEvents"}, allow_nan=False
    )
    return f'{rest[:-1]}, "traceEvents": [\n{events}\n]}}\n'


class _Interval:
    """A complete event in whole nanoseconds, so that rounding cannot make neighbours overlap."""

    __slots__ = ("end_ns", "event", "start_ns")

    def __init__(self, start_ns: int, end_ns: int, event: TraceEvent) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.event = event

    def as_json(self, pid: int, tid: int) -> dict[str, Any]:
        return {
            "ph": "X",
            "name": self.event.name,
            "cat": self.event.category or "other",
            "pid": pid,
            "tid": tid,
            "ts": self.start_ns / 1000,
            "dur": (self.end_ns - self.start_ns) / 1000,
            "args": _plain(self.event.args),
        }


def _lanes(intervals: Sequence[_Interval]) -> list[list[_Interval]]:
    """Spreads the events of a track so that those of one lane nest or are disjoint."""
    lanes: list[tuple[list[_Interval], list[_Interval]]] = []
    for interval in sorted(intervals, key=lambda one: (one.start_ns, -one.end_ns)):
        found = next((lane for lane in lanes if _fits(interval, lane[1])), None)
        if found is None:
            lanes.append(found := ([], []))
        placed, still_open = found
        placed.append(interval)
        still_open.append(interval)
    return [placed for placed, _ in lanes]


def _fits(interval: _Interval, stack: list[_Interval]) -> bool:
    """Whether an event nests in those of the stack or follows them; those that ended are taken off."""
    while stack and stack[-1].end_ns <= interval.start_ns:
        stack.pop()
    crossing = [one for one in stack if one.end_ns < interval.end_ns]
    if any(one.end_ns - interval.start_ns > _GRANULARITY_NS for one in crossing):
        return False
    for one in crossing:
        one.end_ns = interval.start_ns
    while stack and stack[-1].end_ns <= interval.start_ns:
        stack.pop()
    return True


def _rank(track: str) -> tuple[int, str, int, str]:
    place = next((n for n, start in enumerate(_ORDER) if track.startswith(start)), len(_ORDER))
    stem = track.rstrip("0123456789")
    return place, stem, int(track[len(stem) :] or 0), track


def _names(actor_name: str, pid: int, threads: Sequence[str]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": actor_name}}
    for tid, name in enumerate(threads, 1):
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain_value(value) for name, value in values.items()}


def _plain_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _plain_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    return str(value)
