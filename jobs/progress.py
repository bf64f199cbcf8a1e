"""What a user sees while a job runs: a bar on a terminal, a line every few seconds elsewhere, or JSON."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import InternalError, TrtfleetError
from ..trt_actors.event_log import EventLog

__all__ = ["BuildProgress", "JsonLines", "Reporter", "Silent", "Snapshot", "reporter_for", "telling_failure"]

_LINE_EVERY_S = 5.0
_MOST_OF_A_DEFECT = 500


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """How far a job is.

    Attributes:
        rows_planned: Rows of all shards, before any filter inside row groups.
        rows_passed: Rows of the finished shards, counted the same way.
        rows_written: Rows scored by this run and earlier ones.
        bad_rows: Rows quarantined.
        shards_done: Shards finished.
        shards_total: All shards.
        actors: Actors at work.
        failures: Attempts and actors that failed.
        rows_per_s: Rows this run wrote, by its seconds of scoring.
        pieces: What the job calls its shards.
    """

    rows_planned: int
    rows_passed: int
    rows_written: int
    bad_rows: int
    shards_done: int
    shards_total: int
    actors: int
    failures: int
    rows_per_s: float
    pieces: str = "shards"

    def as_facts(self) -> dict[str, Any]:
        """All of it by name, pieces of work under the job's own name for them."""
        facts = asdict(self)
        pieces = facts.pop("pieces")
        return {name.replace("shards", pieces): value for name, value in facts.items()}


class Reporter(Protocol):
    """Shows a job's progress; a context manager around the job."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def say(self, text: str) -> None:
        """Shows one line."""

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        """Takes an event: people are shown its text, if it has any, programs all of it.

        Args:
            event: One of the names in ``docs/metrics.md``.
            text: The same as a line for people.
            level: ``info``, ``warning`` or ``error``.
            facts: Plain values; None stands for nothing.
        """

    def update(self, snapshot: Snapshot) -> None:
        """Shows how far the job is; called several times a second."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Drops the line."""

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        """Says the text, if there is any."""
        if text:
            self.say(text)

    def update(self, snapshot: Snapshot) -> None:
        """Drops the snapshot."""


class _Lines(Silent):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_s = time.monotonic()

    def say(self, text: str) -> None:
        # In one piece: several threads may speak.
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def update(self, snapshot: Snapshot) -> None:
        if time.monotonic() - self._last_s >= _LINE_EVERY_S:
            self._last_s = time.monotonic()
            share = 100 * snapshot.rows_passed / max(1, snapshot.rows_planned)
            self.say(
                f"{share:5.1f}%  {snapshot.shards_done:,} of {snapshot.shards_total:,} {snapshot.pieces}, "
                f"{snapshot.rows_written:,} rows, {_detail(snapshot)}"
            )


class JsonLines(Silent):
    """One JSON object a line: every event, whether or not there are words for it.

    Args:
        log: Where to; standard error by default.
    """

    def __init__(self, log: EventLog | None = None) -> None:
        self._log = self._of_no_run = log or EventLog()
        self._last_s = time.monotonic()
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._opened.enter_context(self._log.taking_over())
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def say(self, text: str) -> None:
        """Tells the line as the event ``note``."""
        self._log.tell("note", text)

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        """Writes the event; all have a run's name once there is one, until another job is planned."""
        if event == "job_planned":
            self._log = self._of_no_run
        if event == "run_started":
            self._log = self._log.bound(run=facts.pop("run"))
        self._log.tell(event, text, level=level, **facts)

    def update(self, snapshot: Snapshot) -> None:
        """Tells it every few seconds as the event ``progress``."""
        if time.monotonic() - self._last_s >= _LINE_EVERY_S:
            self._last_s = time.monotonic()
            self._log.tell("progress", **snapshot.as_facts())


class _Bar:
    def __init__(self, console: Console, doing: str) -> None:
        self._progress = Progress(
            TextColumn(doing),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._task = self._progress.add_task(doing, total=None, detail="starting", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def tell(self, event: str, text: str = "", *, level: str = "info", **facts: Any) -> None:
        if text:
            self.say(text)

    def update(self, snapshot: Snapshot) -> None:
        self._progress.update(
            self._task,
            total=snapshot.rows_planned,
            completed=snapshot.rows_passed,
            detail=_detail(snapshot),
            visible=True,
        )


def _detail(snapshot: Snapshot) -> str:
    parts = [f"{snapshot.rows_per_s:,.0f} rows/s", f"{snapshot.actors} actors"]
    if snapshot.bad_rows:
        parts.append(f"{snapshot.bad_rows:,} bad rows")
    if snapshot.failures:
        parts.append(f"{snapshot.failures:,} failures")
    return ", ".join(parts)


def reporter_for(stream: TextIO | None = None, doing: str = "scoring") -> Reporter:
    """A bar where the stream, by default standard error, is a terminal; lines elsewhere."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    return _Bar(console, doing) if console.is_terminal else _Lines(stream)


@contextlib.contextmanager
def telling_failure(shown: Reporter) -> Iterator[None]:
    """Tells why the block fails; people are told where the command ends."""
    try:
        yield
    except KeyboardInterrupt:
        shown.tell("run_stopped", level="warning")
        raise
    except TrtfleetError as error:
        _tell_failure(shown, error)
        raise
    except BrokenPipeError:
        # Whoever reads the results has enough of them.
        raise
    except Exception as error:
        defect = f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MOST_OF_A_DEFECT]
        _tell_failure(
            shown, InternalError(defect, "run again with TRTFLEET_DEBUG=1 and report the traceback")
        )
        raise


def _tell_failure(shown: Reporter, error: TrtfleetError) -> None:
    shown.tell(
        "run_failed",
        level="error",
        error=type(error).__name__,
        exit_code=error.exit_code,
        reason=error.fact,
        hint=error.hint or None,
    )


class BuildProgress:
    """How far builds are: a bar for each segment on a terminal, lines elsewhere; a context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[phase]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def segment(self, name: str) -> Callable[[str, float], bool]:
        """A new bar; what is returned moves it and never ends the build."""
        if not self._console.is_terminal:
            self.say(f"building {name}")
        task = self._progress.add_task(name, total=1.0, phase="")

        def move(phase: str, share: float) -> bool:
            self._progress.update(task, completed=share, phase=phase)
            return True

        return move
