"""What a comparison found, in words and as plain values."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ParityError
from ..trt_actors.comparison.comparison import Comparison
from ..trt_actors.comparison.exclusion_search import Suggestion
from ..trt_actors.comparison.layers import Layer
from ..trt_actors.comparison.outputs import OutputDifference, quantile
from ..trt_actors.comparison.parity import Parity
from ..trt_actors.comparison.worst import WorstRow
from .sample_books import Outcome

__all__ = ["SHARES", "CompareSummary", "output_values"]

SHARES = (0.5, 0.9, 0.99, 0.999)
"""The shares of rows whose largest relative error is told."""

_MOST_LAYERS = 10
_MOST_SUSPECTS = 4


@dataclass(frozen=True, kw_only=True)
class CompareSummary:
    """The outcome of a comparison.

    Attributes:
        names: Both networks, for people.
        model_a: Path of the first model.
        model_b: Path of the second.
        precision_b: What the second computed in.
        table: Where the calibration table was found that the second was quantized with; None without.
        notes: What a user should know of that.
        samples: Rows of the sample.
        seed: That they were drawn with.
        batch_size: Rows a batch.
        comparison: What was found, worst rows included.
        layers: The inner tensors that were compared, in the order of the network.
        suggestion: What to exclude; None when it was not asked for.
        max_drop: What may be lost; None without a limit.
        outcome: What became of the sample.
        report: The HTML report; None when none was asked for.
        seconds: From the start of the command to the end.
    """

    names: tuple[str, str]
    model_a: str
    model_b: str
    precision_b: str
    table: str | None
    notes: tuple[str, ...]
    samples: int
    seed: int
    batch_size: int
    comparison: Comparison = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    suggestion: Suggestion | None
    max_drop: float | None
    outcome: Outcome
    report: str | None
    seconds: float

    @property
    def parity(self) -> Parity:
        """The comparison summed up."""
        return Parity.of(self.comparison)

    @property
    def worst_layers(self) -> tuple[Layer, ...]:
        """The tensors where most error is new, the most first; of equal ones the first in the network."""
        growing = [layer for layer in self.layers if layer.added > 0]
        return tuple(sorted(growing, key=lambda layer: -layer.added)[:_MOST_LAYERS])

    def require(self) -> None:
        """Refuses networks that are further apart than ``max_drop`` allows.

        Raises:
            ParityError: They are.
        """
        if self.max_drop is not None and self.parity.exceeds(self.max_drop):
            raise ParityError(
                f"{self.names[1]} loses {_number(self.parity.drop)}, more than --max-drop {self.max_drop:g}: "
                f"{self.parity.sentence}",
                "see where with --per-layer; --suggest-exclude proposes what not to quantize",
            )

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values; what is infinite is None."""
        return {
            "model_a": self.model_a,
            "model_b": self.model_b,
            "precision_b": self.precision_b,
            "table": self.table,
            "notes": list(self.notes),
            "samples": self.samples,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "top1_agreement": self.parity.top1_agreement,
            "relative_error": _finite(self.parity.relative_error),
            "drop": _finite(self.parity.drop),
            "max_drop": self.max_drop,
            "outputs": [output_values(output) for output in self.comparison.outputs],
            "worst": [_row_values(row) for row in self.comparison.worst],
            "layers": [layer.as_json() for layer in self.layers],
            "suggestion": None if self.suggestion is None else _suggested(self.suggestion),
            "report": self.report,
            **vars(self.outcome),
            "bad": list(self.outcome.bad),
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """The summary in words."""
        first, second = self.names
        outcome = self.outcome
        lines = [
            f"{second} against {first}: {self.parity.sentence}",
            f"{self.seconds:.1f} s on {outcome.actors} actors, {outcome.backend}, batch size "
            f"{self.batch_size}, {self.samples:,} rows drawn with seed {self.seed}",
            *self.notes,
        ]
        if outcome.units_before:
            lines.append(f"{outcome.units_before} of {outcome.units} units had been compared before")
        if outcome.bad_rows:
            lines.append(f"{outcome.bad_rows:,} bad rows did not count; the first: {outcome.bad[0]}")
        for output in self.comparison.outputs:
            lines += _output_lines(output)
        if self.comparison.worst:
            lines.append("worst rows, other answers before larger relative errors:")
            lines += [f"  {_row_line(row)}" for row in self.comparison.worst]
        if self.layers:
            lines += _layer_lines(self.layers, self.worst_layers, is_int8=self.table is not None)
        if self.suggestion is not None:
            lines += _suggestion_lines(self.suggestion)
        if self.report:
            lines.append(f"report: {self.report}")
        return lines


def output_values(output: OutputDifference) -> dict[str, Any]:
    """An output's comparison as plain values; what is infinite is None."""
    difference = output.difference
    values = {
        "name": output.pair.a,
        "name_b": output.pair.b,
        "answers": output.pair.answers,
        "rows": output.rows,
        "agreed": output.agreed,
        "agreement": output.agreement,
        "max_absolute_error": difference.largest,
        "mean_absolute_error": difference.mean_absolute_error,
        "relative_error": difference.relative_error,
        "sqnr_db": difference.sqnr_db,
        "cosine": difference.cosine,
        "not_finite": difference.broken,
    }
    return {
        **{name: _finite(value) if isinstance(value, float) else value for name, value in values.items()},
        "row_relative_error": {
            f"{100 * share:g}%": _finite(quantile(output.row_errors, share)) for share in (*SHARES, 1)
        },
    }


def _output_lines(output: OutputDifference) -> Iterator[str]:
    difference, pair = output.difference, output.pair
    name = pair.a if pair.a == pair.b else f"{pair.a} and {pair.b}"
    same = {"top-1": "the same largest score", "equal": "equal values", "none": ""}[pair.answers]
    agreed = f"{output.agreed:,} of {output.rows:,} rows with {same}; " if same else ""
    cosine = "none" if difference.cosine is None else f"{difference.cosine:.6f}"
    yield (
        f"{name}: {agreed}relative error {_number(difference.relative_error)} "
        f"(SQNR {difference.sqnr_db:.1f} dB), cosine {cosine}, "
        f"|a - b| {_number(difference.mean_absolute_error)} on average, {_number(difference.largest)} at most"
    )
    if difference.broken:
        yield f"  {difference.broken:,} of {difference.count:,} values are NaN or infinite in one of both"
    shares = ", ".join(
        f"{100 * share:g}% up to {_number(quantile(output.row_errors, share))}" for share in SHARES
    )
    yield f"  relative error of a row: {shares}, the largest {_number(quantile(output.row_errors, 1))}"


def _row_line(row: WorstRow) -> str:
    key = ", ".join(f"{name} {value}" for name, value in row.key.items())
    answers = ""
    if row.answers is not None and row.answers[0] != row.answers[1]:
        answers = f"  answers {row.answers[0]} and {row.answers[1]}"
    elif not row.agrees:
        answers = "  another answer"
    where = f"row {row.row:,} of {row.file}"
    return f"{_number(row.error):>9}  {key + '  ' if key else ''}{where}{answers}"


def _row_values(row: WorstRow) -> dict[str, Any]:
    values: Mapping[str, Any] = vars(row)
    answers = None if row.answers is None else list(row.answers)
    return {**values, "key": dict(row.key), "error": _finite(row.error), "answers": answers}


def _layer_lines(layers: tuple[Layer, ...], worst: tuple[Layer, ...], *, is_int8: bool) -> Iterator[str]:
    if not worst:
        yield f"all {len(layers)} inner tensors are the same"
        return
    first = next(layer for layer in layers if layer.relative_error > 0)
    yield f"{len(layers)} inner tensors compared; the first that differs is {first.tensor}, of {first.node}"
    yield "where they part, most new error first (relative error, of it new, SQNR; tensor):"
    for layer in worst:
        named = ", ".join(layer.suspects[:_MOST_SUSPECTS])
        named += ", ..." if len(layer.suspects) > _MOST_SUSPECTS else ""
        yield (
            f"  {_number(layer.relative_error):>9} {_number(layer.added):>9} {layer.sqnr_db:6.1f} dB  "
            f"{layer.tensor}" + (f", made by {named}" if named else "")
        )
    blamed = next((layer.suspects for layer in worst if layer.suspects), ())
    if is_int8 and blamed:
        flags = [part for node in blamed for part in ("--exclude", node)]
        yield f"to keep what makes most of it in single precision: {shlex.join(flags)}"


def _suggestion_lines(suggestion: Suggestion) -> Iterator[str]:
    limit = f"--max-drop {suggestion.max_drop:g}"
    if suggestion.passes and not suggestion.exclude:
        yield f"nothing need be excluded for {limit}: {suggestion.before.sentence}"
    elif suggestion.passes:
        yield (
            f"{len(suggestion.exclude)} of {len(suggestion.contributions)} quantized nodes have to stay in "
            f"single precision for {limit}, {suggestion.trials} selections tried: {suggestion.after.sentence}"
        )
        yield f"  {shlex.join(suggestion.flags)}"
    else:
        yield f"no exclusion passes {limit}, {suggestion.trials} selections tried"
    if suggestion.contributions:
        yield "what a node loses when it alone is quantized:"
        yield from (
            f"  {_number(one.parity.drop):>9}  {one.node}, {one.op_type}; relative error "
            f"{_number(one.parity.relative_error)}"
            for one in suggestion.contributions[:_MOST_LAYERS]
        )


def _suggested(suggestion: Suggestion) -> dict[str, Any]:
    values = suggestion.as_json()
    for one in values["contributions"]:
        one["relative_error"] = _finite(one["relative_error"])
    return {**values, "flags": list(suggestion.flags)}


def _number(value: float) -> str:
    return f"{value:.3g}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
