"""What a run has written down of itself: all that its summary and its report are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..trt_actors.stages import StageStats
from ..trt_actors.task import EngineFacts
from .actor_books import ActorBook
from .limits import JobFacts, limit_of
from .run_report_history import FailureGroup, Timeline
from .summary import Summary, device_share_of, shares_of

__all__ = ["Circumstances", "RunFacts"]


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What was known of a run before it began, for the words about its limit.

    Attributes:
        readers: Threads an actor reads with; no more than its cores.
        decoders: Threads an actor decodes with: its feeders where that is cheap.
        feeders: Threads an actor fills slots with.
        column: The widest column with its type; may be empty.
        advice: Sentences about what would speed reading up.
    """

    readers: int = 1
    decoders: int = 1
    feeders: int = 1
    column: str = ""
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class RunFacts:
    """One run, ended or not. Times are seconds since it began, unless they say otherwise.

    Attributes:
        run: Its name.
        state: ``running``, ``finished``, ``failed`` or ``stopped``.
        out: Where it writes.
        started_s: When it began, Unix time.
        rows_planned: Rows of all shards, before any filter.
        rows: Rows committed, in earlier runs too.
        rows_before: Rows that earlier runs had committed.
        bad_rows: Rows in quarantine.
        shards: All shards.
        shards_before: Shards that earlier runs had committed.
        shards_done: Shards committed.
        ready_s: When the first actor was ready; None if none ever was.
        scored_s: When the last shard was committed; None if that did not happen.
        end_s: When these facts were put together.
        timeline: What was done when.
        failures: What failed, by reason.
        deaths: Actors that died.
        errors: Attempts that failed while their actor lived on.
        actors: In the order in which they became ready.
        engines: What executed, each kind once.
        notes: What actors had to tell.
        quarantines: Some of the files that bad rows are in.
        heard_offset_s: What ``ActorBook.heard_s`` is ahead of these times.
    """

    run: str
    state: str
    out: str
    started_s: float
    rows_planned: int
    rows: int
    rows_before: int
    bad_rows: int
    shards: int
    shards_before: int
    shards_done: int
    ready_s: float | None
    scored_s: float | None
    end_s: float
    timeline: Timeline
    failures: tuple[FailureGroup, ...]
    deaths: int
    errors: int
    actors: Sequence[ActorBook]
    engines: tuple[EngineFacts, ...]
    notes: tuple[str, ...]
    quarantines: tuple[str, ...]
    heard_offset_s: float

    @property
    def stages(self) -> StageStats:
        """The seconds of all actors' threads."""
        return StageStats.total(book.stages for book in self.actors)

    @property
    def scoring_ended_s(self) -> float:
        """When there was nothing left to score, or the run ended before."""
        return self.end_s if self.scored_s is None else self.scored_s

    def tail_of(self, book: ActorBook) -> float:
        """For how long an actor was not heard of before scoring ended: it had nothing to do."""
        return max(0.0, self.scoring_ended_s + self.heard_offset_s - book.heard_s)

    def summary(
        self,
        *,
        seconds: float,
        circumstances: Circumstances,
        files: int = 0,
        rows: tuple[int, int] | None = None,
    ) -> Summary:
        """The run in numbers.

        Args:
            seconds: What the command has taken.
            circumstances: What was known of the run before.
            files: Final files.
            rows: Rows and bad rows that were published; None where nothing was.
        """
        ready_s = self.end_s if self.ready_s is None else self.ready_s
        scoring_s = max(0.0, self.scoring_ended_s - ready_s)
        rows_scored = self.rows - self.rows_before
        engine = sum(book.stats.engine_rows_per_s for book in self.actors)
        rate = rows_scored / scoring_s if scoring_s else 0.0
        until_scored = {book.name: (book.stats, self.tail_of(book)) for book in self.actors}
        infos = [book.info for book in self.actors]
        summary = Summary(
            out=self.out,
            rows=self.rows if rows is None else rows[0],
            bad_rows=self.bad_rows if rows is None else rows[1],
            rows_scored=rows_scored,
            shards=self.shards,
            files=files,
            actors=len(infos),
            backend=", ".join(sorted({info.backend for info in infos})),
            not_taken="; ".join(sorted({info.not_taken for info in infos} - {""})),
            batch_size=max((info.batch_size for info in infos), default=0),
            batch_origin=next((info.batch_origin for info in infos), ""),
            notes=self.notes,
            seconds=seconds,
            startup_s=max(0.0, seconds - (self.end_s - ready_s)),
            scoring_s=scoring_s,
            merge_s=self.end_s - self.scoring_ended_s,
            rows_per_s=rate,
            engine_rows_per_s=engine,
            efficiency=rate / engine if engine and rows_scored else None,
            shares=shares_of(until_scored),
            device_share=device_share_of(until_scored),
            failures=self.deaths + self.errors,
        )
        return replace(summary, limit=self._limit(summary, circumstances)) if rows_scored else summary

    def _limit(self, summary: Summary, known: Circumstances) -> tuple[str, ...]:
        """What limited the run, in words."""
        facts = JobFacts(
            shares=summary.shares,
            device_share=summary.device_share,
            efficiency=summary.efficiency,
            seconds=summary.seconds,
            startup_s=summary.startup_s,
            scoring_s=summary.scoring_s,
            merge_s=summary.merge_s,
            actors=max(1, summary.actors),
            stages=self.stages,
            readers=known.readers,
            decoders=known.decoders,
            feeders=known.feeders,
            batch_size=summary.batch_size,
            column=known.column,
            advice=known.advice,
        )
        return limit_of(facts).sentences
