"""A sweep as one HTML file: changes, best settings, models by batch sizes, charts, scaling, every trial."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..html_page import facts_list, html_page
from .compare import Change
from .page_charts import model_section, scaling_section
from .page_tables import best_table, changes_table, grid_tables, scaling_table, table, trials_table
from .results import Row, best_rows, failures, pareto_front

__all__ = ["REPORT", "sweep_page"]

REPORT = "report.html"


def sweep_page(rows: Sequence[Row], changes: Sequence[Change] | None, baseline: str | None) -> bytes:
    """A page that needs nothing but itself and a browser; it has no script and asks no network.

    Args:
        rows: Of the sweep; names and errors in them are shown as text, whatever is in them.
        changes: What differs from an earlier sweep; None where there was none.
        baseline: The backend that others are held against.
    """
    devices = dict.fromkeys(row.found.device_name for row in rows if row.found.device_name)
    failed = sum(row.found.error is not None for row in rows)
    unsteady = sum(row.found.is_steady is False for row in rows)
    bad_rows = [row.found.bad_rows for row in rows if row.found.bad_rows is not None]
    facts = [
        f"{len(rows)} trials",
        *devices,
        *(("throughput on a dataset",) if bad_rows else ()),
        *((f"up to {max(bad_rows):,} bad rows in a trial",) if any(bad_rows) else ()),
        *((f"{failed} failed",) if failed else ()),
        *((f"{unsteady} never ran steadily",) if unsteady else ()),
    ]
    return html_page(
        "sweep/view",
        title="Sweep of " + ", ".join(dict.fromkeys(row.trial.model for row in rows)),
        parts={
            "facts": facts_list(facts),
            "sections": "\n".join(filter(None, _sections(rows, changes, baseline))),
        },
    )


def _sections(rows: Sequence[Row], changes: Sequence[Change] | None, baseline: str | None) -> Iterator[str]:
    if changes is not None:
        same = sum(change.verdict == "same" for change in changes)
        told = f"{same} of {len(changes)} numbers did not change by more than their noise."
        yield _section("changes", "Against the earlier sweep", changes_table(changes), told)
    front, best = pareto_front(rows), best_rows(rows)
    if best:
        yield _section("best", "Best setting: most rows per second of a device", best_table(best))
    if any(row.found.error is None for row in rows):
        against = f"×2.00 is twice as fast as {baseline}." if baseline else ""
        yield _section("grids", "Models by batch sizes", grid_tables(rows, baseline), against)
    for model, device in dict.fromkeys((row.trial.model, row.trial.device) for row in rows):
        own = [row for row in rows if (row.trial.model, row.trial.device) == (model, device)]
        yield model_section(model, device, own, front)
    yield scaling_section(rows, scaling_table(rows))
    if any(row.found.error is None for row in rows):
        told = "◉ marks what nothing beats in both latency and rows per second of one device."
        yield _section("trials", "Every trial", trials_table(rows, baseline, front), told)
    failed = failures(rows)
    if failed:
        yield _section("failed", "Trials that failed", table(["trials", "error"], failed))


def _section(name: str, title: str, body: str, told: str = "") -> str:
    text = f'<p class="soft">{told}</p>' if told else ""
    return f"<section id='{name}'><h2>{title}</h2>{text}{body}</section>"
