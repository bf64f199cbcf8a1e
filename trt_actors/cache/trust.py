"""Whether a folder with engines is safe from strangers: whoever can write there runs code on every GPU."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable

from ...errors import CacheError

__all__ = ["refuse_open_folder"]

_ANOTHER = "or name another cache with --cache or TRTFLEET_CACHE"


def refuse_open_folder(root: str, below: Iterable[str] = ()) -> None:
    """Refuses a folder that everybody can write to, or that a stranger may have put in our way.

    A group may share one. Folders that are not there are passed over.

    Args:
        root: The folder.
        below: Folders in it that are looked at, too.

    Raises:
        CacheError: One is writable for everybody; or the folder lies in one that is, as in ``/tmp``, and
            belongs to another user.
    """
    for folder in (root, *(os.path.join(root, name) for name in below)):
        found = _look(folder)
        if found is not None and found.st_mode & stat.S_IWOTH:
            mode = f"{stat.S_IMODE(found.st_mode):o}"
            raise CacheError(
                f"the engine cache {folder} can be written by everybody (mode {mode})",
                f"chmod o-w {shlex.quote(folder)}, and remove what is not yours there; {_ANOTHER}",
            )
    own, parent = _look(root), _look(os.path.dirname(root))
    if own is None or parent is None or own.st_uid in (0, os.geteuid()):
        return
    if parent.st_mode & stat.S_IWOTH:
        raise CacheError(
            f"the engine cache {root} belongs to user {own.st_uid}, and everybody can put folders there",
            f"take a folder of your own, {_ANOTHER}",
        )


def _look(folder: str) -> os.stat_result | None:
    try:
        return os.stat(folder)
    except OSError:
        return None
