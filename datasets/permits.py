"""Permits: why a run that was frozen in the middle of a publication does no harm when it wakes.

A run that is about to swap its final files in first takes a permit, a hidden folder of its own; all that it
will make visible is staged by then or gets a new name. Only then does it look whether another command has
taken the output over or finished it. Who does either revokes permits, and removes what earlier generations
have staged, before it changes anything visible itself. So a run whose look saw nothing is stopped in time:

- A staged file becomes visible by being renamed, in an object store by a copy that the server makes. Once it
  is removed neither can be done, and no two attempts stage under one name.
- On disk an earlier ``_SUCCESS`` is taken away by moving it into the permit's folder, which fails when that
  is gone.
- Final files are removed by name, and the names of a generation are its own.

An object store leaves two instants open, for it has no compare-and-delete and its copies are not atomic. A
run that is frozen between looking at an earlier ``_SUCCESS`` and deleting it deletes that of whoever finished
meanwhile; it puts it back as soon as it wakes. And a copy that the server began before the staged object was
removed may end when a later generation is in sight. Whatever command finds the output finished mends both.
"""

from __future__ import annotations

import secrets

from .naming import generations, hidden_path, number_of
from .storage import Storage

__all__ = ["STAGED", "disarm_earlier", "revoke", "take_permit"]

STAGED = "merged"
"""Folder of a generation for what is about to become visible."""

_PERMITS = "permits"


def take_permit(storage: Storage, generation: str) -> str:
    """Takes a permit; returns the path of its folder."""
    folder = hidden_path(generation, _PERMITS, secrets.token_hex(8))
    storage.put(f"{folder}/permit", b"")
    return folder


def revoke(storage: Storage, generation: str) -> None:
    """Takes all permits of a generation away."""
    parent = hidden_path(generation, _PERMITS)
    for name in storage.children(parent)[0]:
        storage.remove_folder(f"{parent}/{name}")


def disarm_earlier(storage: Storage, generation: str) -> None:
    """Takes from runs of earlier generations all that lets them change what is visible."""
    for earlier in generations(storage):
        if number_of(earlier) < number_of(generation):
            revoke(storage, earlier)
            storage.delete([entry.path for entry in storage.list(hidden_path(earlier, STAGED))])
