"""A calibration table as one HTML file: every tensor's histogram with the threshold that was chosen."""

from __future__ import annotations

import html
import json
import math
import os
from typing import Any

from ..trt_actors.calibration.table import CalibrationTable
from ..trt_actors.calibration.tensor_range import TensorRange
from .html_page import facts_list, html_page, write_page

__all__ = ["write_calibration_html"]

_WIDTH, _HEIGHT = 480, 120


def write_calibration_html(table: CalibrationTable, path: str | os.PathLike[str]) -> None:
    """Writes a page that needs nothing but itself and a browser.

    It asks no network for anything: its Content-Security-Policy forbids that, and every script but its own.

    Args:
        table: What to show; names in it are shown as text, whatever is in them.
        path: The file, replaced if it is there.

    Raises:
        OutputError: The file cannot be written.
    """
    write_page(_page(table), path)


def _page(table: CalibrationTable) -> bytes:
    facts = [
        f"{len(table.tensors):,} tensors",
        f"method {table.method}",
        f"{table.samples:,} rows, seed {table.seed}, batch size {table.batch_size}",
        f"model {table.model[:12]}",
        *(f"{name} {json.dumps(value)}" for name, value in table.feed.items() if value not in (None, [], 0)),
        *(f"excluded {name}" for name in table.excluded),
    ]
    tensors = "\n".join(
        _tensor(place, name, tensor) for place, (name, tensor) in enumerate(table.tensors.items())
    )
    return html_page(
        "calibration_view",
        title=f"Calibration of {table.model_name}",
        parts={"facts": facts_list(facts), "tensors": tensors},
        scripts=("page.js",),
    )


def _tensor(place: int, name: str, tensor: TensorRange) -> str:
    largest = max(abs(tensor.minimum), abs(tensor.maximum))
    kept = tensor.threshold / largest if largest else 1.0
    facts: list[tuple[str, Any]] = [
        ("threshold", f"{tensor.threshold:.6g}"),
        ("scale", f"{tensor.scale:.6g}"),
        ("range", f"{tensor.minimum:.6g} to {tensor.maximum:.6g}"),
        ("clipped", f"{tensor.clipped:.4%}"),
        ("zero", f"{tensor.zeros / tensor.count:.1%}" if tensor.count else "-"),
        ("values", f"{tensor.count:,}"),
    ]
    listed = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)
    shown = html.escape(name)
    return (
        f'<article data-place="{place}" data-name="{shown}" data-clipped="{tensor.clipped!r}" '
        f'data-kept="{kept!r}" data-largest="{largest!r}"><h2>{shown}</h2><dl>{listed}</dl>'
        f"{_drawing(name, tensor, largest)}</article>"
    )


def _drawing(name: str, tensor: TensorRange, largest: float) -> str:
    """Bars of the numbers of magnitudes, logarithmic, and a line where the threshold is."""
    if not tensor.histogram:
        return '<p class="soft">All values are zero.</p>'
    used = max(place for place, number in enumerate(tensor.histogram) if number) + 1
    # The threshold may lie beyond all that was seen.
    bins = max(used, min(math.ceil(tensor.threshold / tensor.bin_width), 2 * used))
    width = _WIDTH / bins
    most = math.log1p(max(tensor.histogram))
    bars = []
    for place, number in enumerate(tensor.histogram[:used]):
        if number:
            height = max(1.0, _HEIGHT * math.log1p(number) / most)
            start = place * tensor.bin_width
            # The largest value itself may be the threshold, and the first of its bin.
            kind = "beyond" if start >= tensor.threshold and tensor.clipped else "bar"
            said = f"{start:.5g} to {start + tensor.bin_width:.5g}: {number:,}"
            bars.append(
                f'<rect class="{kind}" x="{place * width:.2f}" y="{_HEIGHT - height:.2f}" '
                f'width="{max(width - 0.5, 0.5):.2f}" height="{height:.2f}"><title>{said}</title></rect>'
            )
    line = min(tensor.threshold / tensor.bin_width * width, _WIDTH)
    label = html.escape(f"Magnitudes of {name}, numbers on a logarithmic scale")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" aria-label="{label}">{"".join(bars)}'
        f'<line class="threshold" x1="{line:.2f}" x2="{line:.2f}" y1="0" y2="{_HEIGHT}">'
        f"<title>threshold {tensor.threshold:.6g}</title></line>"
        f'<text x="0" y="{_HEIGHT + 13}">0</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" text-anchor="end">{bins * tensor.bin_width:.4g}</text></svg>'
    )
