"""What files and folders of an output are called: generations, their final files, and what is hidden."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .storage import Storage

__all__ = [
    "FINAL",
    "HIDDEN",
    "SUCCESS",
    "final_name",
    "finals",
    "generations",
    "hidden_path",
    "number_of",
    "superseded_finals",
]

HIDDEN = "_trtfleet"
SUCCESS = "_SUCCESS"
FINAL = re.compile(r"part-\d{5,}(?:-g(\d{4,}))?\.parquet")
"""Name of a final file; its group is the number of the generation, which the first does not name."""

_GENERATION = re.compile(r"g\d{4,}")


def number_of(generation: str) -> int:
    """The number of a generation: 2 for ``g0002``."""
    return int(generation[1:])


def generations(storage: Storage) -> list[str]:
    """Every generation that an output has a folder of, the newest first."""
    found = [name for name in storage.children(HIDDEN)[0] if _GENERATION.fullmatch(name)]
    return sorted(found, key=number_of, reverse=True)


def is_earlier(folder: str, generation: str) -> bool:
    """Whether a hidden folder is no generation at all, or one before ``generation``."""
    return not _GENERATION.fullmatch(folder) or number_of(folder) < number_of(generation)


def hidden_path(generation: str, *names: str) -> str:
    """Path of a hidden object or folder of a generation below the output."""
    return "/".join((HIDDEN, generation, *names))


def final_name(number: int, generation: str) -> str:
    """Name of a final file.

    No two generations share a name: whatever a run of an earlier one still does, it does to files of its own.
    """
    of = "" if number_of(generation) == 1 else f"-{generation}"
    return f"part-{number:05d}{of}.parquet"


def finals(storage: Storage) -> list[str]:
    """Names of the final files that are visible now, of whatever generation."""
    return [entry.path for entry in storage.children()[1] if FINAL.fullmatch(entry.path)]


def superseded_finals(storage: Storage, generation: str, kept: Sequence[str]) -> list[str]:
    """Names of the visible final files that a generation replaces; none of a later one.

    Args:
        storage: The output's root.
        generation: Which one.
        kept: Its own files. Outputs of format 1 have no generation in any name.
    """
    found = [name for name in finals(storage) if name not in set(kept)]
    return [name for name in found if _of(name) <= number_of(generation)]


def _of(name: str) -> int:
    match = FINAL.fullmatch(name)
    return int(match[1] or 1) if match else 0
