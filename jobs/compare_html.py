"""A comparison as one HTML file: the outputs' errors, the worst rows, and where the networks part."""

from __future__ import annotations

import html
import math
import os
import shlex
from collections.abc import Iterator, Sequence

from ..trt_actors.calibration.statistics import TensorStatistics
from ..trt_actors.comparison.layers import Layer
from ..trt_actors.comparison.outputs import OutputDifference
from ..trt_actors.comparison.worst import WorstRow
from .compare_summary import CompareSummary, output_values
from .html_page import facts_list, html_page, table, write_page

__all__ = ["write_comparison_html"]

_WIDTH, _HEIGHT, _BARS = 480, 120, 64
_STRIP = 180


def write_comparison_html(summary: CompareSummary, path: str | os.PathLike[str]) -> None:
    """Writes a page that needs nothing but itself and a browser; it has no script and asks no network.

    Args:
        summary: What to show; names and keys in it are shown as text, whatever is in them.
        path: The file, replaced if it is there.

    Raises:
        OutputError: The file cannot be written.
    """
    write_page(_page(summary), path)


def _page(summary: CompareSummary) -> bytes:
    facts = [
        f"{summary.samples:,} rows drawn with seed {summary.seed}",
        f"batch size {summary.batch_size}",
        summary.outcome.backend,
        *((f"{summary.outcome.bad_rows:,} bad rows",) if summary.outcome.bad_rows else ()),
        *summary.notes,
    ]
    return html_page(
        "comparison_view",
        title=f"{summary.names[1]} against {summary.names[0]}",
        parts={
            "verdict": html.escape(summary.parity.sentence),
            "facts": facts_list(facts),
            "sections": "\n".join(_sections(summary)),
        },
    )


def _sections(summary: CompareSummary) -> Iterator[str]:
    yield from map(_output, summary.comparison.outputs)
    if summary.layers:
        yield _layers(summary.layers)
    if summary.suggestion is not None:
        yield _suggestion(summary)
    if summary.comparison.worst:
        yield _worst(summary.comparison.worst)


def _output(output: OutputDifference) -> str:
    values = output_values(output)
    shares = values.pop("row_relative_error")
    facts = {**values, **{f"{share} of rows up to": value for share, value in shares.items()}}
    listed = "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{html.escape(_text(value))}</dd></div>"
        for name, value in facts.items()
        if name not in ("name", "name_b", "answers")
    )
    return (
        f"<section><h2>Output {html.escape(output.pair.a)}</h2><dl>{listed}</dl><div class='drawings'>"
        f"{_drawing('Relative errors of rows', output.row_errors)}"
        f"{_drawing('Absolute errors of values', output.errors)}</div></section>"
    )


def _drawing(title: str, statistics: TensorStatistics) -> str:
    """Bars of the numbers of errors, logarithmic."""
    head = f"<div><h3>{title}: {statistics.zeros:,} of {statistics.count:,} are zero"
    head += f", {statistics.non_finite:,} infinite</h3>" if statistics.non_finite else "</h3>"
    counts = statistics.histogram.counts
    if not counts.any():
        return f"{head}</div>"
    used = int(counts.nonzero()[0][-1]) + 1
    step = -(-used // _BARS)
    bars = [int(counts[start : start + step].sum()) for start in range(0, used, step)]
    width, most = _WIDTH / len(bars), math.log1p(max(bars))
    edge = step * statistics.histogram.bin_width
    drawn = []
    for place, number in enumerate(bars):
        if number:
            height = max(1.0, _HEIGHT * math.log1p(number) / most)
            said = f"{place * edge:.4g} to {(place + 1) * edge:.4g}: {number:,}"
            drawn.append(
                f'<rect class="bar" x="{place * width:.2f}" y="{_HEIGHT - height:.2f}" '
                f'width="{max(width - 1, 0.5):.2f}" height="{height:.2f}"><title>{said}</title></rect>'
            )
    return (
        f'{head}<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" '
        f'aria-label="{title}, numbers on a logarithmic scale">{"".join(drawn)}'
        f'<text x="0" y="{_HEIGHT + 13}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" text-anchor="end">{len(bars) * edge:.4g}</text></svg></div>'
    )


def _layers(layers: Sequence[Layer]) -> str:
    largest = max((one.relative_error for one in layers if math.isfinite(one.relative_error)), default=0.0)
    rows = (
        [
            html.escape(one.tensor),
            html.escape(f"{one.node}, {one.op_type}" if one.node else one.op_type),
            _strip(one, largest),
            _number(one.relative_error),
            _number(one.added),
            _number(one.sqnr_db, ".1f"),
            html.escape(", ".join(one.suspects)),
        ]
        for one in layers
    )
    heads = ["tensor", "made by", "", "relative error", "new there", "SQNR, dB", "to blame"]
    return (
        "<section><h2>Inner tensors, in the order of the network</h2>"
        '<p class="soft">Bars: the relative error; in the second color what is new at the tensor.</p>'
        f"{table(heads, rows)}</section>"
    )


def _strip(layer: Layer, largest: float) -> str:
    def width(value: float) -> float:
        return _STRIP * (min(value / largest, 1.0) if largest else float(value > 0))

    return (
        f'<svg class="strip" viewBox="0 0 {_STRIP} 12" aria-hidden="true">'
        f'<rect class="bar" x="0" y="0" width="{width(layer.relative_error):.2f}" height="6"></rect>'
        f'<rect class="new" x="0" y="7" width="{width(layer.added):.2f}" height="5"></rect></svg>'
    )


def _suggestion(summary: CompareSummary) -> str:
    found = summary.suggestion
    assert found is not None
    said = f"No exclusion passes --max-drop {found.max_drop:g}; nothing excluded: {found.before.sentence}."
    if found.passes:
        flags = (
            f"<code>{html.escape(shlex.join(found.flags))}</code>" if found.exclude else "Nothing to exclude"
        )
        said = f"{flags} for --max-drop {found.max_drop:g}: {html.escape(found.after.sentence)}."
    rows = (
        [
            html.escape(one.node),
            html.escape(one.op_type),
            _number(one.parity.drop),
            _number(one.parity.relative_error),
        ]
        for one in found.contributions
    )
    heads = ["node quantized alone", "operator", "loses", "relative error"]
    listed = table(heads, rows) if found.contributions else ""
    return f"<section><h2>What to exclude</h2><p>{said}</p>{listed}</section>"


def _worst(worst: Sequence[WorstRow]) -> str:
    keys = list(dict.fromkeys(name for row in worst for name in row.key))
    rows = (
        [
            *(html.escape(_text(row.key.get(name))) for name in keys),
            _number(row.error),
            html.escape(row.output),
            "" if row.answers is None else f"{row.answers[0]} and {row.answers[1]}",
            "yes" if row.agrees else "no",
            html.escape(f"row {row.row:,} of {row.file}"),
        ]
        for row in worst
    )
    heads = [*map(html.escape, keys), "relative error", "output", "classes", "same answer", "where"]
    return f"<section><h2>Worst rows</h2>{table(heads, rows)}</section>"


def _number(value: float, form: str = ".3g") -> str:
    return f'<span class="number">{value:{form}}</span>'


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
