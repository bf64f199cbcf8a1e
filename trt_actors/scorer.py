"""One actor's work without Ray: load the network once, then score shard after shard."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from ..datasets.output import Output
from ..datasets.reading import ShardReader
from ..datasets.records import CommitRecord
from ..datasets.shards import Shard
from ..datasets.storage import Storage
from .attempt import AttemptWriter, BatchFailedError, run_carefully, run_fast
from .backends import open_engine
from .batches import BadInput
from .feed import Feed
from .hooks import load_hook
from .pipeline import Pipeline
from .results import Results
from .stages import Stage, Stages
from .task import ActorInfo, Receipt, ScoreTask
from .trace import NullTracer, Tracer
from .tuning import agree_batch_size

__all__ = ["Scorer", "reading_threads"]


_READERS = 4


def reading_threads(threads: int) -> int:
    """How many threads an actor of so many CPU threads reads with."""
    return max(_READERS, threads)


class Scorer:
    """Scores shards for one job on one device; ``score`` may be called by several threads at once.

    Use as a context manager, or call ``close``.

    Args:
        task: The job.

    Raises:
        TrtfleetError: The network cannot be loaded, the backend is missing, or a hook cannot be imported.
    """

    def __init__(self, task: ScoreTask) -> None:
        start = time.monotonic()
        self._task = task
        self._output = Output(Storage(task.output_url), task.generation, task.job)
        preprocess = load_hook(task.preprocess, task.hook_folder) if task.preprocess else None
        postprocess = load_hook(task.postprocess, task.hook_folder) if task.postprocess else None
        self._engine, not_taken = open_engine(
            task.backend, task.network, settings=task.tensorrt, threads=task.threads
        )
        self._batch_size = agree_batch_size(self._engine, self._output, task.batch_size)
        # Image decoding has threads of its own: readers wait for it, so sharing them could deadlock.
        self._readers = ThreadPoolExecutor(reading_threads(task.threads), "reader")
        self._decoders = ThreadPoolExecutor(task.threads, "decoder")
        self.tracer = Tracer() if task.traced else NullTracer()
        self._stages = Stages(self.tracer)
        self._reader = ShardReader(task.projection, self._readers, task.prefetch_bytes, self._stages.measure)
        self._feed = Feed(task, preprocess, self._decoders, self._stages)
        self._results = Results(self._engine.outputs, postprocess)
        self._engine.full_rows = self._batch_size
        # While the engine holds its fill, as many batches again are being filled and written.
        self._pipeline = Pipeline(
            self._engine, max(task.slots, 2 * self._engine.depth), self._batch_size, self.tracer
        )
        # Only now: what warms the device up is no part of the job.
        self._engine.trace(self.tracer)
        self.info = ActorInfo(
            backend=self._engine.backend,
            not_taken=not_taken,
            batch_size=self._batch_size,
            node=socket.gethostname(),
            pid=os.getpid(),
            start_s=time.monotonic() - start,
        )

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and releases the device."""
        self._pipeline.close()
        self._readers.shutdown()
        self._decoders.shutdown()
        self._engine.close()

    def score(self, shard: Shard, attempt: str) -> Receipt:
        """Scores a shard and commits it, unless another attempt commits first.

        Args:
            shard: What to score.
            attempt: A name no other attempt at any shard of this output has.

        Raises:
            TrtfleetError: The shard cannot be scored; nothing of this attempt is visible.
        """
        start = time.monotonic()
        self.tracer.name_thread("feeder")
        self._pipeline.begin(min(self._batch_size, shard.rows))
        try:
            try:
                record = self._attempt(shard, attempt, careful=False)
            except BatchFailedError:
                # Some row breaks the engine or a hook: once more, slowly, to find out which.
                record = self._attempt(shard, attempt, careful=True)
        finally:
            self._pipeline.end()
        return Receipt(
            record=record,
            won=record.attempt == attempt,
            seconds=time.monotonic() - start,
            stats=self._pipeline.stats,
            stages=self._stages.stats,
        )

    def _attempt(self, shard: Shard, attempt: str, *, careful: bool) -> CommitRecord:
        bad: list[BadInput] = []
        blocks = self._reader.read(shard, self._feed.block_rows(self._batch_size))
        batches = self._feed.batches(blocks, self._batch_size, bad)
        reorder = self._feed.is_ragged
        codec = self._task.compression
        with AttemptWriter(self._output, shard, attempt, codec, reorder=reorder) as writer:
            if careful:
                run_carefully(self._pipeline, batches, self._results, writer, bad, self._stages)
            else:
                run_fast(self._pipeline, batches, self._results, writer, self._stages)
            with self._stages.measure(Stage.COMMIT):
                return writer.commit(bad)
