"""What a job would do, as ``--dry-run`` of ``score`` and ``calibrate`` tells it; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..trt_actors.expectation import Expectation
from .cache_contents import size_text
from .expected_memory import ExpectedMemory
from .value_text import counted

__all__ = ["Actors", "DryRun", "Pieces", "State", "Target"]

State = Literal["new", "resumed", "finished", "replaced", "unclear"]

_LABEL_WIDTH = 10
_KEY_SHOWN = 12
_STATES: Mapping[State, str] = {
    "new": "a new one",
    "resumed": "begun before, would be resumed",
    "finished": "finished, nothing to do",
    "replaced": "holds another or a finished job, would be replaced once this one is complete",
    "unclear": "holds a job; whether it is this one shows when the table is there",
}


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The work, cut.

    Attributes:
        what: What a piece is called: ``shard`` or ``unit``.
        count: All of them.
        done: Of these, what an earlier run finished.
        rows_done: The rows of these.
        largest_rows: Rows of the largest.
        largest_bytes: Uncompressed bytes to read of the largest.
    """

    what: str
    count: int
    done: int = 0
    rows_done: int = 0
    largest_rows: int = 0
    largest_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Actors:
    """The actors of the job.

    Attributes:
        count: How many.
        cpus: CPUs that Ray reserves for each.
        gpus: GPUs likewise.
        threads: CPU threads of each.
        cluster: Where they would run.
        starts_ray: Whether Ray would be started on this machine for them.
        per_machine: The most of them on one machine.
    """

    count: int
    cpus: float
    gpus: float
    threads: int
    cluster: str
    starts_ray: bool
    per_machine: int


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the job would leave behind.

    Attributes:
        url: Where.
        state: What stands there now.
        files: Final files, about; None where that cannot be told.
        size_bytes: Their bytes before compression; None likewise.
        also: Further files.
    """

    url: str
    state: State
    files: int | None = None
    size_bytes: int | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A job that was planned and not run.

    Attributes:
        job: ``score`` or ``calibrate``.
        model: The model's path.
        precision: What it computes in.
        files: Files of the dataset.
        rows: Rows to go through, of those that the filter may let pass.
        size_bytes: Uncompressed bytes of the columns that are read.
        inputs: For each input of the model the columns that feed it, with their types; empty where a
            preprocess hook does.
        keep: Columns carried along.
        pieces: Its shards or units.
        actors: Its actors.
        machines: What actors would run with, for each kind of machine.
        batch: The batch size in words.
        batch_size: Rows a batch; None where the first actor measures.
        memory: What an actor is expected to need.
        target: What would be written.
        first: The calibration that would come first; None without one.
        notes: What else a user should know.
    """

    job: str
    model: str
    precision: str
    files: int
    rows: int
    size_bytes: int
    inputs: Mapping[str, tuple[str, ...]]
    keep: tuple[str, ...] = ()
    pieces: Pieces
    actors: Actors
    machines: tuple[Expectation, ...]
    batch: str
    batch_size: int | None
    memory: ExpectedMemory
    target: Target
    first: DryRun | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        memory = {**asdict(self.memory), "host_bytes": self.memory.host_bytes}
        first = None if self.first is None else self.first.as_json()
        return {"dry_run": True, **asdict(self), "memory": memory, "first": first}

    def lines(self) -> list[str]:
        """The plan in words."""
        before = [] if self.first is None else [*self.first.lines(), "", "and then:"]
        head = f"{self.job} {self.model}: nothing was run or written, this is what it would do"
        told = [f"{label:<{_LABEL_WIDTH}} {words}" for label, words in self._told()]
        return [*before, head, *told]

    def _told(self) -> Iterator[tuple[str, str]]:
        yield (
            "data",
            f"{counted(self.files, 'file')}, {counted(self.rows, 'row')}, {_size(self.size_bytes)} to read",
        )
        for name, columns in self.inputs.items():
            yield "input", f"{name} <- {', '.join(columns)}"
        if self.keep:
            yield "keep", ", ".join(self.keep)
        yield from self._pieces()
        target = self.target
        yield "output", f"{target.url}: {_STATES[target.state]}{_files(target)}"
        for also in target.also:
            yield "also", also
        if target.state == "finished":
            return
        yield from self._actors()
        for kind in self.machines:
            yield "backend", f"{self.precision} with {_backend(kind)}"
            if kind.engine:
                yield "engine", _engine(kind)
        yield "batch", self.batch
        yield from self._memory()
        for note in self.notes:
            yield "note", note

    def _pieces(self) -> Iterator[tuple[str, str]]:
        pieces = self.pieces
        largest = f"{counted(pieces.largest_rows, 'row')}, {_size(pieces.largest_bytes)}"
        words = f"{pieces.count:,}, the largest {largest}"
        if pieces.done:
            words += f"; {pieces.done:,} with {counted(pieces.rows_done, 'row')} are committed"
        yield f"{pieces.what}s", words

    def _actors(self) -> Iterator[tuple[str, str]]:
        actors = self.actors
        where = "this machine, Ray would be started for it" if actors.starts_ray else actors.cluster
        each = f"{actors.cpus:g} CPU and {actors.gpus:g} GPU each, {counted(actors.threads, 'thread')}"
        yield "actors", f"{actors.count:,} on {where}; {each}"

    def _memory(self) -> Iterator[tuple[str, str]]:
        memory, actors = self.memory, self.actors
        about = "at most" if memory.is_limit else "about"
        parts = [
            (memory.process_bytes, "process"),
            (memory.model_bytes, "model"),
            (memory.read_bytes, "reading ahead"),
            (memory.batch_bytes, "batches"),
            (memory.activation_bytes, "activations"),
        ]
        listed = ", ".join(f"{what} {_size(size)}" for size, what in parts if size)
        yield "memory", f"{about} {_size(memory.host_bytes)} an actor: {listed}"
        if memory.device_bytes:
            yield "GPU memory", f"{about} {_size(memory.device_bytes)} an actor"
        if memory.unknown:
            yield "", f"not counted: {'; '.join(memory.unknown)}"
        free = [kind.free_bytes for kind in self.machines if kind.free_bytes]
        if free and actors.per_machine * memory.host_bytes > min(free):
            needed = _size(actors.per_machine * memory.host_bytes)
            yield (
                "warning",
                (
                    f"{counted(actors.per_machine, 'actor')} on a machine need {about} {needed}, "
                    f"{_size(min(free))} are free there"
                ),
            )


def _files(target: Target) -> str:
    if target.state == "finished" or target.files is None:
        return ""
    size = "" if target.size_bytes is None else f" of {_size(target.size_bytes)} before compression"
    return f"; about {counted(target.files, 'file')}{size}"


def _backend(kind: Expectation) -> str:
    name = kind.flavour or kind.backend or "nothing"
    why = f" ({kind.not_taken})" if kind.not_taken else ""
    return f"{name} on {kind.device}{why}"


def _engine(kind: Expectation) -> str:
    key = kind.engine_key[:_KEY_SHOWN]
    match kind.engine:
        case "cached":
            return f"{key} is in the cache, {_size(kind.engine_bytes)}"
        case "to build":
            return f"{key} is not in the cache: one actor builds it first".removeprefix(" is ")
        case "not kept":
            return "every actor builds its own, the cache is off"
        case _:
            return f"unknown{f': {kind.note}' if kind.note else ''}"


def _size(size_bytes: int) -> str:
    return size_text(size_bytes)
