"""What a finished output no longer needs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from .naming import HIDDEN, hidden_path, is_earlier
from .permits import STAGED
from .records import CommitRecord
from .storage import Storage

__all__ = ["forget"]

_IO_THREADS = 32


def forget(storage: Storage, generation: str) -> None:
    """Deletes what a finished generation no longer needs: parts, all of earlier generations, and litter.

    Litter are quarantine files of attempts that died before their commit: who reads the folder as a whole
    would find rows of theirs twice.
    """
    unneeded = tuple(hidden_path(generation, kind, "") for kind in ("parts", STAGED))
    quarantine = hidden_path(generation, "quarantine", "")
    old, kept = [], []
    for entry in storage.list(HIDDEN):
        if is_earlier(entry.path.split("/")[1], generation) or entry.path.startswith(unneeded):
            old.append(entry.path)
        elif entry.path.startswith(quarantine):
            kept.append(entry.path)

    def is_litter(path: str) -> bool:
        """Whether a quarantine file is of another attempt than the one that was committed."""
        shard = path.rpartition("/")[2].partition("-")[0]
        commit = hidden_path(generation, "commits", f"{shard}.json")
        data = storage.get(commit)
        return data is not None and CommitRecord.decode(data, commit).quarantine != path

    with ThreadPoolExecutor(_IO_THREADS, "quarantine") as pool:
        old += [path for path, litter in zip(kept, pool.map(is_litter, kept), strict=True) if litter]
    storage.delete(old)
