"""What is known of each actor of a run: what it runs, what it did, and where its time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

from ..trt_actors.pipeline_stats import PipelineStats
from ..trt_actors.stages import Stage, StageStats
from ..trt_actors.task import ActorInfo, EngineFacts, Receipt
from .summary import TimeShares, shares_of

__all__ = ["ActorBook", "ActorBooks", "Worked"]

_STATES = tuple(name.name for name in fields(TimeShares))
_STAGES = tuple(stage.value for stage in Stage)


@dataclass(slots=True, eq=False, kw_only=True)
class ActorBook:
    """One actor.

    Attributes:
        name: What the scheduler calls it.
        place: How many actors became ready before it.
        info: What it said when it was ready.
        stats: Its engine thread's account so far.
        stages: Its other threads' seconds so far.
        heard_s: When it was heard of last.
        notes: What a user should know of it.
        shards: Shards that it committed.
        rows: Rows of these.
    """

    name: str
    place: int
    info: ActorInfo
    heard_s: float
    stats: PipelineStats = field(default_factory=PipelineStats)
    stages: StageStats = field(default_factory=StageStats)
    notes: tuple[str, ...] = ()
    shards: int = 0
    rows: int = 0

    def shares(self, tail_s: float) -> TimeShares | None:
        """Where its time went, and the seconds after which it had nothing left to do."""
        return shares_of({self.name: (self.stats, tail_s)})


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What an actor did between two receipts.

    Attributes:
        states: Seconds of its engine thread, by the names of ``TimeShares``.
        stages: Seconds of its other threads, by stage.
        read_bytes: What it read.
        device_s: Seconds that its device executed; None on CPUs.
    """

    states: dict[str, float]
    stages: dict[str, float]
    read_bytes: int
    device_s: float | None


class ActorBooks:
    """The actors of one run, also those that are gone, by name."""

    def __init__(self) -> None:
        self._books: dict[str, ActorBook] = {}
        self._engines: dict[EngineFacts, EngineFacts] = {}
        self._notes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._books)

    def __iter__(self) -> Iterator[ActorBook]:
        return iter(self._books.values())

    def __getitem__(self, name: str) -> ActorBook:
        return self._books[name]

    @property
    def engines(self) -> tuple[EngineFacts, ...]:
        """What executes, each kind once."""
        return tuple(self._engines)

    @property
    def notes(self) -> tuple[str, ...]:
        """What actors have to tell, each note once."""
        return tuple(sorted(+self._notes))

    def note(self, name: str, notes: tuple[str, ...]) -> list[str]:
        """Takes over what an actor has to tell; returns what is new of it, and to everybody.

        Args:
            name: The actor.
            notes: All that it has to tell; they become more, or the last one longer.
        """
        book = self._books[name]
        if notes == book.notes:
            return []
        new = [note for note in notes[len(book.notes) :] if not self._notes[note]]
        self._notes.subtract(book.notes)
        self._notes.update(notes)
        book.notes = notes
        return new

    def add(self, name: str, info: ActorInfo, now_s: float) -> ActorBook:
        """An actor is ready."""
        # Ten thousand actors say the same.
        engine = self._engines.setdefault(info.engine, info.engine)
        book = ActorBook(name=name, place=len(self._books), info=replace(info, engine=engine), heard_s=now_s)
        self._books[name] = book
        return book

    def hear(self, book: ActorBook, receipt: Receipt, now_s: float) -> Worked | None:
        """Takes over an actor's account; returns what it did since, None if the news are older than ours."""
        before, after = _states(book.stats), _states(receipt.stats)
        if sum(after) < sum(before):
            return None
        worked = Worked(
            states={name: b - a for name, a, b in zip(_STATES, before, after, strict=True)},
            stages={
                name: getattr(receipt.stages, f"{name}_s") - getattr(book.stages, f"{name}_s")
                for name in _STAGES
            },
            read_bytes=receipt.stages.read_bytes - book.stages.read_bytes,
            device_s=None
            if receipt.stats.device_s is None
            else receipt.stats.device_s - (book.stats.device_s or 0.0),
        )
        book.stats, book.stages, book.heard_s = receipt.stats, receipt.stages, now_s
        return worked


def _states(stats: PipelineStats) -> tuple[float, ...]:
    """In the order of ``TimeShares``."""
    return stats.busy_s, stats.starved_s, stats.blocked_s, stats.idle_s, stats.measuring_s
