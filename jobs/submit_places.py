"""The files that a submitted command names: which of them the job can find, and which would go with it."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError

__all__ = ["Places", "check_places", "warn_of_local_files"]

_SHARED = "an absolute path that all nodes have, or --working-dir DIR, which ships a folder"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The files and folders that a command names.

    Attributes:
        reads: Models, tables and job files.
        data: Datasets.
        writes: Outputs and reports.
    """

    reads: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def check_places(places: Places, working_dir: str | None) -> None:
    """Refuses files that the job cannot find or that would go with it.

    Args:
        places: What the command names.
        working_dir: As in ``SubmitSpec``.

    Raises:
        UsageError: A relative path that is not in the working folder, or one of data or of an output.
    """
    for place in filter(_is_relative, places.writes):
        raise UsageError(
            f"{place} is a relative path, in a folder of the job that goes when it ends",
            "write to an absolute path that all nodes have, or to s3://",
        )
    for place in filter(_is_relative, places.data):
        # Each node would get a copy with a time of its own, and each attempt another: data that changed.
        raise UsageError(
            f"{place} is a relative path, and data is not shipped",
            "put it on s3:// or in a folder that all nodes mount, and give its absolute path",
        )
    for place in filter(_is_relative, places.reads):
        if working_dir is None:
            raise UsageError(
                f"{place} is a relative path, and the job works in a folder of its own", f"give {_SHARED}"
            )
        root = Path(working_dir)
        if not (root / place).exists() and not glob.glob(place, root_dir=root, recursive=True):
            raise UsageError(
                f"{place} is not in {working_dir}", "relative paths are looked for in --working-dir"
            )


def warn_of_local_files(places: Places, say: Callable[[str], None]) -> None:
    """Names the absolute paths that mean something else on another machine, unless it shares them.

    Args:
        places: What the command names.
        say: Gets the line, if there are any.
    """
    absolute = [place for place in (*places.reads, *places.data, *places.writes) if os.path.isabs(place)]
    here = [place for place in absolute if os.path.exists(place) or place in places.writes]
    if here:
        names = ", ".join(here)
        say(f"note: on the cluster, {names} are the nodes' own files: right only on shared storage")


def _is_relative(place: str) -> bool:
    return "://" not in place and not os.path.isabs(place)
