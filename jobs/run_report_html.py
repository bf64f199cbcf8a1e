"""The report of a run as one HTML file: what was done when and by whom, where the time went, what failed."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence

from .html_page import facts_list, html_page
from .run_report import RunReport
from .run_report_bars import Part, bar, legend
from .run_report_charts import Phase, duration_text, lanes, rate_text, throughput
from .run_report_tables import actor_table, bad_rows, earlier_runs, engines, failures
from .summary import TimeShares, sized
from .value_text import counted

__all__ = ["run_page"]


def run_page(report: RunReport) -> bytes:
    """Makes a page that needs nothing but itself and a browser; it has no script and asks no network.

    Its size is bounded, whatever the size of the run.

    Args:
        report: What to show; names and reasons in it are shown as text, whatever is in them.
    """
    facts = report.facts
    return html_page(
        "run_view",
        title=f"Scoring with {report.model or 'a model'}",
        parts={
            "state": facts.state,
            "state-text": facts.state,
            "verdict": html.escape(_verdict(report)),
            "facts": facts_list(_facts(report)),
            "sections": "\n".join(part for part in _sections(report) if part),
        },
    )


def _verdict(report: RunReport) -> str:
    summary, facts = report.summary, report.facts
    if facts.state == "finished":
        return (
            f"{counted(summary.rows, 'row')} in {counted(summary.files, 'file')}, "
            f"{counted(summary.bad_rows, 'bad row')}, in {duration_text(summary.seconds)}"
        )
    return (
        f"{facts.shards_done:,} of {counted(facts.shards, 'shard')} are committed, "
        f"{counted(facts.rows, 'row')}; the same command goes on from there"
    )


def _facts(report: RunReport) -> Iterator[str]:
    summary, facts = report.summary, report.facts
    yield summary.out
    yield f"run {facts.run}, generation {report.generation}"
    yield f"began {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(facts.started_s))} UTC"
    if summary.actors:
        yield counted(summary.actors, "actor")
        yield f"{summary.backend}, {report.precision}"
        yield f"batch size {sized(summary.batch_size, summary.batch_origin)}"
    yield counted(facts.shards, "shard")
    yield from (f"{name} {version}" for name, version in report.versions.items())


def _sections(report: RunReport) -> Iterator[str]:
    summary, facts = report.summary, report.facts
    if report.error:
        hint = f'<p class="soft">{html.escape(report.hint)}</p>' if report.hint else ""
        said = f"<p>{html.escape(report.error)}</p>{hint}"
        yield f'<section class="error"><h2>Why it ended</h2>{said}</section>'
    yield _cards(report)
    if summary.limit:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in summary.limit)
        yield f'<section class="limit"><h2>What limited it</h2>{said}</section>'
    yield _over_time(report)
    yield _time(report)
    yield actor_table(facts)
    yield engines(report)
    yield failures(facts, report.before_s)
    yield bad_rows(report)
    notes = [text for text in (summary.calibration, summary.parity, *summary.notes) if text]
    if notes:
        said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        yield f"<section><h2>Notes</h2>{said}</section>"
    yield earlier_runs(report.earlier)


def _cards(report: RunReport) -> str:
    summary, facts = report.summary, report.facts
    before = f"{facts.rows_before:,} before" if facts.rows_before else ""
    cards: list[tuple[str, str, str, bool]] = [
        ("rows scored", f"{summary.rows_scored:,}", before, False),
        (
            "rows a second",
            f"{summary.rows_per_s:,.0f}",
            f"{duration_text(summary.scoring_s)} of scoring",
            False,
        ),
    ]
    if summary.efficiency is not None:
        alone = f"of {rate_text(summary.engine_rows_per_s)} by engines alone"
        cards.append(("efficiency", f"{summary.efficiency:.0%}", alone, False))
    if summary.device_share is not None:
        cards.append(("GPUs busy", f"{summary.device_share:.0%}", "by their own clocks", False))
    elif summary.shares is not None:
        cards.append(("engines busy", f"{summary.shares.executing:.0%}", "of the actors' time", False))
    cards.append(("bad rows", f"{summary.bad_rows:,}", "", summary.bad_rows > 0))
    retried = "attempts and actors" if summary.failures else ""
    cards.append(("failures", f"{summary.failures:,}", retried, summary.failures > 0))
    shown = "".join(
        f"<div><dt>{name}</dt><dd class='{'bad' if is_bad else 'good'}'>{html.escape(value)}"
        f"<small>{html.escape(more)}</small></dd></div>"
        for name, value, more, is_bad in cards
    )
    return f'<dl class="cards">{shown}</dl>'


def _over_time(report: RunReport) -> str:
    summary, facts = report.summary, report.facts
    timeline = facts.timeline
    if not facts.actors or not timeline.rows.any():
        return "<section><h2>Throughput</h2><p class='soft'>No shard was scored in this run.</p></section>"
    phases = [Phase(name="start", start_s=-report.before_s, end_s=facts.ready_s or 0.0)]
    if facts.scored_s is not None:
        phases.append(Phase(name="merge", start_s=facts.scored_s, end_s=facts.end_s))
    whole = throughput(
        timeline,
        end_s=facts.end_s,
        before_s=report.before_s,
        engines_rows_per_s=summary.engine_rows_per_s,
        phases=phases,
    )
    width = timeline.actors_per_lane
    names = [
        book.name if width == 1 else f"{book.name} +{min(width, len(facts.actors) - book.place) - 1:,}"
        for book in facts.actors[::width]
    ][: len(timeline.rows)]
    each = lanes(timeline, names, end_s=facts.end_s, before_s=report.before_s, phases=phases)
    grouped = "" if width == 1 else f", {width:,} to a line, in the order in which they became ready"
    marked = '<p class="soft">Triangles: attempts or actors that failed.</p>' if facts.failures else ""
    return (
        f"<section id='throughput'><h2>Throughput, rows a second</h2>{whole}{marked}"
        f"<h3>Each actor, on one scale{grouped}</h3>{each}"
        f"<p class='soft'>Rows of a shard are spread over the time it took, in steps of "
        f"{duration_text(timeline.bin_s)}.</p></section>"
    )


def _time(report: RunReport) -> str:
    summary = report.summary
    whole = max(summary.seconds, 1e-9)
    phases = [
        Part(name=name, share=seconds / whole, text=duration_text(seconds))
        for name, seconds in (
            ("start", summary.startup_s),
            ("scoring", summary.scoring_s),
            ("merging", summary.merge_s),
        )
    ]
    drawn = [_bar("The whole run", phases)]
    if summary.shares is not None:
        drawn.append(_bar("The actors' engines while scoring", _states(summary.shares)))
    stages = _stages(report)
    if stages:
        drawn.append(_bar("The actors' other threads, in seconds of all of them together", stages))
    return f"<section id='time'><h2>Where the time went</h2>{''.join(drawn)}</section>"


def _states(shares: TimeShares) -> list[Part]:
    words = {
        "starved": "starved for input",
        "blocked": "blocked on output",
        "measuring": "measuring its rate",
    }
    return [
        Part(name=words.get(name, name), share=share, text=f"{share:.1%}")
        for name, share in vars(shares).items()
    ]


def _stages(report: RunReport) -> list[Part]:
    stages = report.facts.stages
    waiting_s = max(0.0, stages.read_s - stages.read_cpu_s)
    seconds = {
        "reading": stages.read_s - waiting_s,
        "waiting for storage": waiting_s,
        "decoding": stages.decode_s,
        "filling slots": stages.stage_s,
        "converting": stages.convert_s,
        "writing": stages.write_s,
        "committing": stages.commit_s,
    }
    whole = sum(seconds.values())
    if not whole:
        return []
    return [
        Part(name=name, share=spent_s / whole, text=f"{duration_text(spent_s)}, {spent_s / whole:.0%}")
        for name, spent_s in seconds.items()
    ]


def _bar(title: str, parts: Sequence[Part]) -> str:
    return f"<h3>{title}</h3>{bar(title, parts)}{legend(parts)}"
