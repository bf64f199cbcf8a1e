"""Bars of shares in a run's report, as inline SVG, and what their colors mean."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Part", "bar", "legend"]

_WIDTH = 1000


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a whole.

    Attributes:
        name: For people; also, with hyphens, the class that gives it a color.
        share: Of the whole, 0 to 1.
        text: Its size in words.
    """

    name: str
    share: float
    text: str

    @property
    def color(self) -> str:
        """The class of its color."""
        return f"c-{self.name.split()[0].lower()}"


def bar(title: str, parts: Sequence[Part], *, height: int = 22) -> str:
    """A whole as one bar of its parts; they may be less than the whole."""
    x, drawn = 0.0, []
    for part in parts:
        width = max(0.0, part.share) * _WIDTH
        if width >= 0.5:
            said = html.escape(f"{part.name}: {part.text}")
            drawn.append(
                f'<rect class="{part.color}" x="{x:.1f}" y="0" width="{width:.1f}" height="{height}">'
                f"<title>{said}</title></rect>"
            )
        x += width
    said = html.escape(f"{title}: " + ", ".join(f"{part.name} {part.text}" for part in parts))
    return (
        f'<svg class="bar" viewBox="0 0 {_WIDTH} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}"><rect class="empty" x="0" y="0" width="{_WIDTH}" height="{height}"/>'
        f"{''.join(drawn)}</svg>"
    )


def legend(parts: Sequence[Part]) -> str:
    """What the colors of a bar mean, with the sizes of its parts."""
    items = "".join(
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{part.color}" width="10" height="10" '
        f'rx="2"/></svg>{html.escape(part.name)} <b>{html.escape(part.text)}</b></li>'
        for part in parts
    )
    return f'<ul class="legend">{items}</ul>'
