"""The report of a run: put together when it ends, however it ends, and kept beside its output's records."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from ..datasets.output import HIDDEN, Output
from ..datasets.records import RunRecord
from ..datasets.storage import foreign_errors, one_line
from ..errors import OutputError, TrtfleetError
from ..trt_actors.event_log import without_secrets
from .progress import Reporter
from .run_facts import RunFacts
from .status import first_bad_rows
from .summary import Summary

__all__ = ["ReportWriter", "RunReport"]

_LIBRARIES = ("trtfleet", "ray", "pyarrow", "numpy", "onnx")


@dataclass(frozen=True, kw_only=True, eq=False)
class RunReport:
    """All that the page shows.

    Attributes:
        model: The model's file name.
        generation: Which of the output's generations was written.
        precision: What the network computes in.
        nodes: Operators of the network as it was given; None where nobody counted them.
        summary: The run in numbers.
        facts: What was written down of it.
        error: Why it failed; empty when it did not.
        hint: What may help against that.
        bad: Some of the bad rows, as ``{file, row, column, reason}``.
        earlier: The accounts of other runs on the same output, oldest first.
        versions: Of the driver's libraries.
    """

    model: str
    generation: str
    precision: str
    nodes: int | None
    summary: Summary
    facts: RunFacts
    error: str
    hint: str
    bad: Sequence[Mapping[str, Any]]
    earlier: Sequence[RunRecord]
    versions: Mapping[str, str]

    @property
    def before_s(self) -> float:
        """Seconds from the start of the command to the beginning of the times in ``facts``."""
        return max(0.0, self.summary.seconds - self.facts.end_s)


class ReportWriter:
    """Writes the report of one run.

    Args:
        output: What the run writes.
        shown: Told when there is no report.
        precision: What the network computes in.
        model: The network as it was given.
        is_wanted: Whether there is to be one at all.
    """

    def __init__(
        self, output: Output, shown: Reporter, *, precision: str, model: onnx.ModelProto, is_wanted: bool
    ) -> None:
        self._output = output
        self._shown = shown
        self._precision = precision
        self._nodes = len(model.graph.node)
        self._is_wanted = is_wanted

    def __call__(self, facts: RunFacts, summary: Summary, error: BaseException | None) -> str:
        """Writes the page, in place of an earlier run's; one that cannot be written is only a pity.

        Args:
            facts: What was written down of the run.
            summary: The run in numbers.
            error: Why it failed; None when it did not.

        Returns:
            Where it is; empty when there is none.
        """
        if not self._is_wanted:
            return ""
        try:
            return self._write(self._report(facts, summary, error))
        except Exception as failure:
            # Whatever is wrong with a page, the rows are where they belong.
            self._shown.say(f"no report: {one_line(failure)}")
            return ""

    def _report(self, facts: RunFacts, summary: Summary, error: BaseException | None) -> RunReport:
        return RunReport(
            model=self._output.job.model,
            generation=self._output.generation,
            precision=self._precision,
            nodes=self._nodes,
            summary=summary,
            facts=facts,
            error="" if error is None else _words(error),
            hint=error.hint if isinstance(error, TrtfleetError) else "",
            bad=first_bad_rows(self._output, facts.quarantines),
            earlier=[record for record in self._output.runs() if record.run != facts.run],
            versions=_versions(),
        )

    def _write(self, report: RunReport) -> str:
        # Imported here: the page is only needed once.
        from .run_report_html import run_page

        path = f"{HIDDEN}/{self._output.generation}/report.html"
        page = without_secrets(run_page(report).decode()).encode()
        with foreign_errors(OutputError, f"cannot write to {self._output.storage.url}"):
            self._output.storage.put(path, page)
        return self._output.storage.describe(path)


def _words(error: BaseException) -> str:
    if isinstance(error, TrtfleetError):
        return error.fact
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
