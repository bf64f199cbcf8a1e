"""Steps: every operation on storage, numbered, with hooks around it; and processes that end at one.

The real ``Storage`` is watched, not replaced: each of its operations below a place calls hooks before and
after it. One hook ends the process there and then, on disk with half of what was being written if so wished;
others let drivers take turns, or freeze one of them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trtfleet.datasets.storage import Storage

__all__ = ["CRASHED", "Crash", "Step", "Steps", "watched"]

CRASHED = 86
"""Exit status of a process that ended at a step."""

_PLAIN = (
    *("put_new", "put", "get", "head", "list", "children"),
    *("publish", "link_or_copy", "remove_folder", "open_input"),
)
_TORN = ("put_new", "put", "write", "link_or_copy")

When = Literal["before", "after", "torn"]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation.

    Attributes:
        number: In the order of the process, from 0.
        name: What it does.
        path: On which object, below the storage's root.
        storage: On which storage.
        data: What it writes; None where nothing.
    """

    number: int
    name: str
    path: str
    storage: Storage
    data: bytes | None = None

    @property
    def can_tear(self) -> bool:
        """Whether a process that ends in the middle of it may leave half of something."""
        return self.storage.is_local and self.name in _TORN


Hook = Callable[[Step], object]


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Where a process ends: before, after or in the middle of a step."""

    number: int
    when: When

    def before(self, step: Step) -> None:
        """Ends the process before the step or in its middle."""
        if step.number == self.number and self.when != "after":
            if self.when == "torn":
                _tear(step)
            os._exit(CRASHED)

    def after(self, step: Step) -> None:
        """Ends the process after the step."""
        if step.number == self.number and self.when == "after":
            os._exit(CRASHED)


def _tear(step: Step) -> None:
    """Does half of a step on disk, as the libraries below would have."""
    full = os.path.join(step.storage.root, step.path)
    if step.name == "link_or_copy":
        os.makedirs(os.path.dirname(full), exist_ok=True)
        os.link(os.path.join(step.storage.root, (step.data or b"").decode()), f"{full}.link")
        return
    data = step.data or b""
    if step.name == "write":
        with open(full, "ab") as file:
            file.write(data[: len(data) // 2])
        return
    # What obstore writes before it gives a whole object its name.
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(f"{full}#1", "wb") as file:
        file.write(data[: len(data) // 2])


class Steps:
    """Numbers operations below a place and calls hooks around each.

    Args:
        place: URL; operations on storages elsewhere, the dataset's for example, are no steps.
        before: Called before each step.
        after: Called after each.

    Attributes:
        done: The steps so far, in order.
    """

    def __init__(self, place: str, before: Hook = lambda step: None, after: Hook = lambda step: None) -> None:
        self._place = place
        self._before, self._after = before, after
        self._lock = threading.Lock()
        self.done: list[Step] = []

    def covers(self, storage: Storage) -> bool:
        """Whether operations on a storage are steps."""
        return f"{storage.url}/".startswith(f"{self._place}/")

    def do(
        self, storage: Storage, name: str, path: str, work: Callable[[], Any], data: bytes | None = None
    ) -> Any:
        """Does one operation as a step."""
        with self._lock:
            step = Step(number=len(self.done), name=name, path=path, storage=storage, data=data)
            self.done.append(step)
        self._before(step)
        result = work()
        self._after(step)
        return result


class _Stream:
    """An output stream whose writes and close are steps."""

    def __init__(self, steps: Steps, storage: Storage, path: str, target: Any) -> None:
        self._steps, self._storage, self._path, self._target = steps, storage, path, target

    def write(self, data: Any) -> Any:
        whole = bytes(data)
        return self._steps.do(
            self._storage, "write", self._path, lambda: self._target.write(whole), data=whole
        )

    def close(self) -> None:
        self._steps.do(self._storage, "close", self._path, self._target.close)

    def flush(self) -> None:
        self._target.flush()


@contextlib.contextmanager
def watched(steps: Steps) -> Iterator[None]:
    """Makes the operations of every ``Storage`` of this process steps, while the context lasts."""
    originals = {name: getattr(Storage, name) for name in (*_PLAIN, "delete", "open_output")}

    def plain(name: str) -> Callable[..., Any]:
        original = originals[name]

        def operation(self: Storage, path: str = "", *rest: Any, **named: Any) -> Any:
            if not steps.covers(self):
                return original(self, path, *rest, **named)
            data, shown = (rest[0] if name.startswith("put") else None), path
            if name in ("publish", "link_or_copy"):
                # The object that comes into being, and what it is made of.
                shown, data = rest[0], path.encode()
            return steps.do(self, name, shown, lambda: original(self, path, *rest, **named), data=data)

        return operation

    def delete(self: Storage, paths: Iterable[str]) -> None:
        if not steps.covers(self):
            originals["delete"](self, paths)
            return
        # One by one: a process may end between any two.
        for path in paths:
            steps.do(self, "delete", path, lambda path=path: originals["delete"](self, [path]))  # type: ignore[misc]

    def open_output(self: Storage, path: str) -> Any:
        if not steps.covers(self):
            return originals["open_output"](self, path)
        target = steps.do(self, "open_output", path, lambda: originals["open_output"](self, path))
        return _Stream(steps, self, path, target)

    for name in _PLAIN:
        setattr(Storage, name, plain(name))
    Storage.delete, Storage.open_output = delete, open_output  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Storage, name, original)
