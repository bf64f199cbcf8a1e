"""Text from anywhere, such as names in a model or a file, as a terminal may get it."""

from __future__ import annotations

__all__ = ["printable"]

_MOST_CHARACTERS = 4000


def printable(text: str, *, lines: bool = False) -> str:
    """The text with control characters written as escapes, and its middle left out where it is endless.

    A name in somebody's file could otherwise move the cursor or hide what stands before it.

    Args:
        text: Of at most a few lines.
        lines: Whether line ends stay and the length is no matter, as in a listing.
    """
    shown = "".join(
        sign
        if sign.isprintable() or (lines and sign in "\n\t")
        else sign.encode("unicode_escape", "surrogatepass").decode()
        for sign in text
    )
    if lines or len(shown) <= _MOST_CHARACTERS:
        return shown
    half = _MOST_CHARACTERS // 2
    return f"{shown[:half]} ... {shown[-half:]}"
