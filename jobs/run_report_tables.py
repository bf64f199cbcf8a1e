"""The tables of a run's report: actors, engines and their segments, failures, bad rows, earlier runs."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

from ..datasets.records import RunRecord
from ..trt_actors.task import EngineFacts
from .actor_books import ActorBook
from .html_page import table
from .run_facts import RunFacts
from .run_report import RunReport
from .run_report_bars import Part, bar
from .run_report_charts import duration_text, rate_text
from .value_text import count_text, counted

__all__ = ["actor_table", "bad_rows", "earlier_runs", "engines", "failures"]

_ACTORS = 60
_FAILURES = 40
_RUNS = 20
_ENGINES = 6


def actor_table(facts: RunFacts) -> str:
    """Every actor, or the first ones where there are many."""
    if not facts.actors:
        return ""
    shown = facts.actors[:_ACTORS]
    has_device = any(book.stats.device_s is not None for book in shown)
    heads = ["actor", "node", "device", "start", "batch", "shards", "rows", "engine alone", "its time"]
    heads += ["GPU busy"] if has_device else []
    rows = (_actor(facts, book, has_device=has_device) for book in shown)
    left = len(facts.actors) - len(shown)
    more = f'<p class="soft">... and {left:,} more actors.</p>' if left else ""
    said = "".join(
        f'<span class="key"><svg viewBox="0 0 10 10"><rect class="c-{name}" width="10" height="10"/></svg>'
        f"{name}</span>"
        for name in ("executing", "starved", "blocked", "idle", "measuring")
    )
    return (
        f"<section id='actors'><h2>Actors</h2>{table(heads, rows)}{more}"
        f"<p class='soft keys'>Their time: {said}</p></section>"
    )


def _actor(facts: RunFacts, book: ActorBook, *, has_device: bool) -> list[str]:
    info, stats = book.info, book.stats
    tail_s = facts.tail_of(book)
    shares = book.shares(tail_s)
    drawn, device = "", "-"
    if shares is not None:
        parts = [Part(name=name, share=share, text=f"{share:.0%}") for name, share in vars(shares).items()]
        drawn = bar(f"Time of {book.name}", parts, height=12)
        whole = stats.busy_s + stats.starved_s + stats.blocked_s + stats.idle_s + stats.measuring_s + tail_s
        device = "-" if stats.device_s is None else f"{stats.device_s / whole:.0%}"
    cells = [
        html.escape(book.name),
        html.escape(info.node),
        html.escape(f"{info.device}, {info.backend}"),
        _number(duration_text(info.start_s)),
        _number(f"{info.batch_size:,}"),
        _number(f"{book.shards:,}"),
        _number(f"{book.rows:,}"),
        _number(rate_text(stats.engine_rows_per_s) if stats.engine_rows_per_s else "-"),
        drawn,
    ]
    return cells + ([_number(device)] if has_device else [])


def engines(report: RunReport) -> str:
    """What executed, how the network was cut, and why nothing better was taken."""
    facts, summary = report.facts, report.summary
    if not facts.engines:
        return ""
    blocks = [_engine(engine, report.nodes) for engine in facts.engines[:_ENGINES]]
    left = len(facts.engines) - len(blocks)
    more = [f'<p class="soft">... and {left:,} more kinds of engines.</p>'] if left else []
    not_taken = [f"<p>Not taken: {html.escape(summary.not_taken)}</p>"] if summary.not_taken else []
    return (
        f"<section id='engine'><h2>Engine and partition</h2><p>{html.escape(summary.backend)} in "
        f"{html.escape(report.precision)}.</p>{''.join([*not_taken, *blocks, *more])}</section>"
    )


def _engine(engine: EngineFacts, nodes: int | None) -> str:
    came = {
        "found": "found in the engine cache",
        "built": "built in this run",
        "waited": "built by another process meanwhile",
    }
    runtimes = ", ".join(engine.runtimes) or "unknown"
    said = [runtimes, *([came[engine.origin]] if engine.origin in came else [])]
    title = f"<h3>{html.escape('; '.join(said))}</h3>"
    if engine.segments_total <= 1 and all(segment.kind == "native" for segment in engine.segments):
        given = f" ({nodes:,} operators as given)" if nodes else ""
        return f"{title}<p>The whole network{given} is one piece of ONNX Runtime's.</p>"
    counts = [segment.nodes or 0 for segment in engine.segments]
    drawn = ""
    if sum(counts):
        parts = [
            Part(name=segment.kind, share=count / sum(counts), text=f"{segment.name}: {count:,} operators")
            for segment, count in zip(engine.segments, counts, strict=True)
        ]
        inside = sum(n for s, n in zip(engine.segments, counts, strict=True) if s.kind == "tensorrt")
        said_share = f"{inside / sum(counts):.1%} of the operators run in TensorRT."
        drawn = f"{bar('Operators by segment', parts)}<p>{said_share}</p>"
    rows = (
        [
            html.escape(segment.name),
            "TensorRT" if segment.kind == "tensorrt" else "ONNX Runtime",
            _number("-" if segment.nodes is None else f"{segment.nodes:,}"),
            _number("-" if segment.multiply_adds is None else count_text(segment.multiply_adds)),
        ]
        for segment in engine.segments
    )
    listed = table(["segment", "runs in", "operators", "multiply-adds"], rows)
    if engine.segments_total > len(engine.segments):
        listed += (
            f'<p class="soft">... and {engine.segments_total - len(engine.segments):,} more segments.</p>'
        )
    reasons = ""
    if engine.native:
        why = ([_number(f"{count:,}"), html.escape(reason)] for reason, count in engine.native)
        reasons = f"<h3>Why operators stay out of TensorRT</h3>{table(['operators', 'reason'], why)}"
    return f"{title}{drawn}{listed}{reasons}"


def failures(facts: RunFacts, before_s: float) -> str:
    """What failed and was tried again, by reason; the command began so many seconds before the run."""
    if not facts.failures:
        return ""
    shown = facts.failures[:_FAILURES]
    rows = (
        [
            _number(f"{group.count:,}"),
            html.escape(group.reason),
            html.escape(group.subject),
            _number(duration_text(before_s + group.first_s)),
            _number(duration_text(before_s + group.last_s)),
        ]
        for group in shown
    )
    said = f"{counted(facts.errors, 'attempt')} failed and {counted(facts.deaths, 'actor')} died"
    left = len(facts.failures) - len(shown)
    more = f'<p class="soft">... and {left:,} more reasons.</p>' if left else ""
    heads = ["times", "reason", "first seen on", "first after", "last after"]
    return (
        f"<section id='failures'><h2>Failures and retries</h2><p>{said}; their shards went to other "
        f"attempts.</p>{table(heads, rows)}{more}</section>"
    )


def bad_rows(report: RunReport) -> str:
    """The first rows in quarantine."""
    count = report.summary.bad_rows
    if not count:
        return ""
    rows = (
        [
            html.escape(str(bad.get("file", ""))),
            _number(f"{bad['row']:,}" if isinstance(bad.get("row"), int) else "-"),
            html.escape(str(bad.get("column") or "-")),
            html.escape(str(bad.get("reason", ""))),
        ]
        for bad in report.bad
    )
    left = count - len(report.bad)
    more = (
        f'<p class="soft">... and {left:,} more, in the quarantine files of the output.</p>'
        if left > 0
        else ""
    )
    return (
        f"<section id='bad'><h2>{counted(count, 'bad row')}</h2>"
        f"{table(['file', 'row', 'column', 'reason'], rows)}{more}</section>"
    )


def earlier_runs(runs: Sequence[RunRecord]) -> str:
    """Other runs on the same output."""
    if not runs:
        return ""
    rows = (
        [
            html.escape(run.run),
            _utc(run.started_s),
            html.escape(_state(run)),
            _number(f"{run.shards_done:,}"),
            html.escape(run.error),
        ]
        for run in runs[-_RUNS:]
    )
    heads = ["run", "began, UTC", "state", "shards then done", "error"]
    return f"<section id='earlier'><h2>Other runs on this output</h2>{table(heads, rows)}</section>"


def _state(run: RunRecord) -> str:
    # Of a driver that was killed nobody can say more.
    return f"{run.state}, heard of until {_utc(run.updated_s)}" if run.state == "running" else run.state


def _utc(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


def _number(text: str) -> str:
    return f'<span class="number">{html.escape(text)}</span>'
