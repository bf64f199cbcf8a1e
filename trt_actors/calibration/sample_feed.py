"""The units of a sample as pieces of model inputs: what every pass over a sample feeds its networks with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from ...datasets.reading import Block
from ...datasets.sample_reading import read_batches
from ...datasets.sampling import Unit
from ..batches import BadInput, Piece
from ..feed import Feed
from ..hooks import watched_hook
from ..task import FeedTask
from ..watchdog import Watchdog
from .task import BadSample

__all__ = ["SampleFeed", "bad_samples"]

_READERS = 2


class SampleFeed:
    """Reads and decodes units; used by several threads at once.

    Args:
        task: What feeds the network.
        watchdog: Watches the hook.

    Raises:
        HookError: The preprocess hook cannot be imported.
    """

    def __init__(self, task: FeedTask, watchdog: Watchdog) -> None:
        self._task = task
        preprocess = watched_hook("preprocess", task.preprocess, task.hook_folder, watchdog)
        # Image decoding has threads of its own: readers wait for it, so sharing them could deadlock.
        self._readers = ThreadPoolExecutor(max(_READERS, task.threads), "reader")
        self._decoders = ThreadPoolExecutor(task.threads, "decoder")
        self._feed = Feed(task, preprocess, self._decoders)

    def batches(self, unit: Unit) -> Iterator[list[Block]]:
        """The rows of each batch of a unit, as they are stored."""
        task = self._task
        return read_batches(unit, task.projection, self._readers, task.prefetch_bytes)

    def decode(self, blocks: Iterable[Block], batch_size: int, bad: list[BadInput]) -> Iterator[Piece]:
        """The rows of one batch: one piece, or one for every shape that they have."""
        for batch in self._feed.batches(blocks, batch_size, bad):
            yield batch.joined()

    def pieces(self, unit: Unit, bad: list[BadInput]) -> Iterator[Piece]:
        """All batches of a unit; rows that cannot be decoded are appended to ``bad``."""
        for blocks in self.batches(unit):
            yield from self.decode(blocks, unit.batch_size, bad)

    def close(self) -> None:
        """Stops the threads."""
        self._readers.shutdown()
        self._decoders.shutdown()


def bad_samples(unit: Unit, bad: Iterable[BadInput]) -> tuple[BadSample, ...]:
    """Where the bad rows of a unit lie, in the sample's order."""
    found = []
    for one in sorted(bad, key=lambda one: one.row):
        file, row = unit.locate(one.row)
        found.append(BadSample(file=file, row=row, column=one.column, reason=one.reason))
    return tuple(found)
