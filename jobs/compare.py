"""The comparison job: sample, run both networks on Ray, merge, say where they part."""

from __future__ import annotations

import contextlib
import time

from ..cluster.session import connect
from ..errors import EmptyDatasetError
from ..trt_actors.actor import CompareActor
from ..trt_actors.comparison.comparison import Comparison
from ..trt_actors.comparison.exclusion_search import Suggestion
from ..trt_actors.comparison.layers import explain
from .compare_html import write_comparison_html
from .compare_plan import ComparePlan, make_compare_plan
from .compare_spec import ALL_ROWS, CompareSpec
from .compare_summary import CompareSummary
from .compare_trials import suggest_exclusion
from .progress import Reporter
from .reporting import reporting
from .sample_books import Outcome, SampleBooks
from .sample_run import forget, run_sample

__all__ = ["CompareSummary", "run_compare"]

_FINISHED = (
    *("rows", "bad_rows", "units", "units_before", "actors", "backend", "failures"),
    *("top1_agreement", "relative_error", "drop", "max_drop"),
)


def run_compare(spec: CompareSpec, reporter: Reporter | None = None) -> CompareSummary:
    """Compares two networks over a dataset; see ``CompareSpec``.

    What is found depends on the models, the dataset and the options alone, not on the number of actors or on
    what happened to them. An interrupted call is resumed by the same call, but for a suggestion.

    Args:
        spec: What to do.
        reporter: Where progress is shown; nowhere by default.

    Returns:
        What was found, whatever it is: ``CompareSummary.require`` refuses networks that are too far apart.

    Raises:
        TrtfleetError: The comparison failed; what was found out stays for the next call.
    """
    start_s = time.monotonic()
    with reporting(reporter, spec.log_format) as shown:
        plan = make_compare_plan(spec)
        _tell(plan, shown)
        comparison, outcome, suggestion = _run(plan, shown)
        found = plan.int8.found if plan.int8 else None
        summary = CompareSummary(
            names=plan.names,
            model_a=spec.model_a,
            model_b=spec.model_b,
            precision_b=spec.precision_b,
            table=None if found is None else found.url,
            notes=() if found is None else (found.sentence, *found.notes),
            samples=len(plan.rows),
            seed=plan.seed,
            batch_size=plan.batch_size,
            comparison=comparison,
            layers=tuple(explain(comparison.layers, plan.layers, plan.excludable)),
            suggestion=suggestion,
            max_drop=spec.max_drop,
            outcome=outcome,
            report=spec.report,
            seconds=time.monotonic() - start_s,
        )
        if spec.report is not None:
            write_comparison_html(summary, spec.report)
            shown.tell("report_written", place=spec.report)
        forget(plan.work)
        _tell_result(plan, summary, shown)
    return summary


def _tell(plan: ComparePlan, shown: Reporter) -> None:
    shown.tell(
        "job_planned",
        f"{len(plan.dataset.files):,} files, {plan.dataset.rows:,} rows; {len(plan.rows):,} are compared"
        + (f", with {len(plan.layers)} inner tensors" if plan.spec.per_layer else ""),
        job=plan.job,
        model=plan.spec.model_a,
        model_b=plan.spec.model_b,
        precision_b=plan.spec.precision_b,
        files=len(plan.dataset.files),
        rows=plan.dataset.rows,
        samples=len(plan.rows),
        tensors=len(plan.layers),
    )
    if plan.spec.samples is not None and len(plan.rows) < plan.spec.samples < ALL_ROWS:
        shown.say(
            f"there are fewer rows than --samples {plan.spec.samples:,}: all {len(plan.rows):,} are taken"
        )
    if plan.spec.per_layer and not plan.layers:
        shown.say("the networks name no inner tensor alike: there is nothing to compare layer by layer")
    if plan.int8 is not None:
        shown.say(plan.int8.found.sentence)


def _tell_result(plan: ComparePlan, summary: CompareSummary, shown: Reporter) -> None:
    values, suggestion = summary.as_json(), summary.suggestion
    shown.tell(
        "run_finished",
        job=plan.job,
        **{name: values[name] for name in _FINISHED},
        seconds=round(summary.seconds, 3),
        exclude=None if suggestion is None else list(suggestion.exclude),
    )


def _run(plan: ComparePlan, shown: Reporter) -> tuple[Comparison, Outcome, Suggestion | None]:
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(connect(plan.spec.address)) if plan.spec.suggest_exclude else None

        def read(books: SampleBooks) -> tuple[Comparison, Outcome, str]:
            outcome = books.outcome()
            parts = (Comparison.decode(data, name) for data, name in books.parts())
            return Comparison.merged(parts, plan.pairs, plan.spec.worst), outcome, books.run

        comparison, outcome, run = run_sample(plan, shown, actor=CompareActor, method="compare", read=read)
        if not comparison.rows:
            raise EmptyDatasetError("no row was compared", "are there rows, and do they fit the model?")
        suggestion = None
        if session is not None and plan.int8 is not None:
            suggestion = suggest_exclusion(plan, plan.int8, session, shown, run)
    return comparison, outcome, suggestion
