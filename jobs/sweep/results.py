"""The results of a sweep: a row for each trial, as Parquet and as CSV."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from ...datasets.storage import Storage, foreign_errors
from ...errors import OutputError
from ...trt_actors.trial.task import Measurement
from .grid import Trial

__all__ = [
    "CSV",
    "PARQUET",
    "Row",
    "best_rows",
    "failures",
    "pareto_front",
    "read_rows",
    "trials_text",
    "write_rows",
]

PARQUET, CSV = "results.parquet", "results.csv"

_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_PARETO = "is_pareto"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial and what came of it."""

    trial: Trial
    found: Measurement

    @property
    def device_rate(self) -> float:
        """Rows per second of one device; 0 where they were not measured."""
        return (self.found.rows_per_s or 0.0) / self.trial.devices

    def encode(self) -> bytes:
        """The row as JSON."""
        return json.dumps({"trial": asdict(self.trial), "found": asdict(self.found)}).encode()

    @classmethod
    def decode(cls, data: bytes, name: str) -> Row:
        """Reads a row.

        Raises:
            OutputError: It is damaged.
        """
        try:
            values = json.loads(data)
            return cls(trial=Trial(**values["trial"]), found=Measurement(**values["found"]))
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{name} is damaged: {error}", "start afresh with --overwrite") from error


def _schema() -> pa.Schema:
    found = []
    for record in (Trial, Measurement):
        hints = get_type_hints(record)
        for one in fields(record):
            kinds = [kind for kind in _TYPES if kind in (hints[one.name], *_members(hints[one.name]))]
            found.append(pa.field(one.name, _TYPES[kinds[0]]))
    return pa.schema([*found, pa.field(_PARETO, pa.bool_())])


def _members(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__args__", ())


def write_rows(storage: Storage, rows: Sequence[Row]) -> None:
    """Writes the results, replacing earlier ones.

    Raises:
        OutputError: They cannot be written.
    """
    front = pareto_front(rows)
    values = [
        {
            **asdict(row.trial),
            **asdict(row.found),
            # Unknown where one of the two was not measured.
            _PARETO: row.trial in front if _speeds(row) else None,
        }
        for row in rows
    ]
    table = pa.Table.from_pylist(values, _schema())
    with foreign_errors(OutputError, f"cannot write to {storage.url}"):
        parquet, csv = io.BytesIO(), io.BytesIO()
        pq.write_table(table, parquet)
        pc.write_csv(table, csv)
        storage.put(PARQUET, parquet.getvalue())
        storage.put(CSV, csv.getvalue())


def read_rows(url: str) -> list[Row]:
    """Reads the results of a finished sweep.

    Raises:
        OutputError: There are none, or they cannot be read.
    """
    storage = Storage(url)
    with foreign_errors(OutputError, f"cannot read {url}"):
        data = storage.get(PARQUET)
        if data is None:
            raise OutputError(f"{url} holds no {PARQUET}", "name the output of a sweep that ended")
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
    # A sweep of another version may know other columns.
    trial = [one.name for one in fields(Trial)]
    found = {one.name for one in fields(Measurement)}
    try:
        return [
            Row(
                trial=Trial(**{name: row[name] for name in trial}),
                found=Measurement(**{name: value for name, value in row.items() if name in found}),
            )
            for row in rows
        ]
    except KeyError as error:
        raise OutputError(f"{url} is of no sweep: {PARQUET} has no column {error}", "") from error


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The trial with most rows per second of a device, of each model and precision on each kind of device."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row.trial.model, row.trial.precision, row.trial.device)
        standing = best.get(key)
        if row.device_rate > (0.0 if standing is None else standing.device_rate):
            best[key] = row
    return list(best.values())


def pareto_front(rows: Sequence[Row]) -> frozenset[Trial]:
    """The trials that no other one beats in both latency and throughput.

    Among those of a model on a kind of device: the median of a batch, host to host, and rows per second of
    one device. Of several trials with the same two numbers, all are on the front.
    """
    groups: dict[tuple[str, str], list[tuple[float, float, Trial]]] = {}
    for row in rows:
        speeds = _speeds(row)
        if speeds is not None:
            groups.setdefault((row.trial.model, row.trial.device), []).append((*speeds, row.trial))
    front: set[Trial] = set()
    for members in groups.values():
        best = (0.0, 0.0)
        for latency, rate, trial in sorted(members, key=lambda member: (member[0], -member[1])):
            if rate > best[1] or (latency, rate) == best:
                best = (latency, rate)
                front.add(trial)
    return frozenset(front)


def _speeds(row: Row) -> tuple[float, float] | None:
    """Milliseconds a batch and rows per second and device, where both were measured."""
    if not row.found.host_p50_ms or not row.device_rate:
        return None
    return row.found.host_p50_ms, row.device_rate


def failures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Trials that came to nothing and why, those with the same reason together, in words."""
    reasons: dict[str, list[Trial]] = {}
    for row in rows:
        if row.found.error is not None:
            reasons.setdefault(row.found.error, []).append(row.trial)
    return [(trials_text(trials), reason) for reason, trials in reasons.items()]


def trials_text(trials: Sequence[Trial]) -> str:
    """Trials that have something in common, in short."""
    return f"{trials[0]}" + (f" and {len(trials) - 1} more" if trials[1:] else "")
