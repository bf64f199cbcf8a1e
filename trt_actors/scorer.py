"""One actor's work without Ray: load the network once, then score shard after shard."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from ..datasets.output import Output
from ..datasets.reading import ShardReader
from ..datasets.records import CommitRecord
from ..datasets.shards import Shard
from ..datasets.storage import Storage
from ..errors import BackendError
from .attempt import AttemptWriter
from .backends import open_engine
from .batches import BadInput
from .device_name import device_of
from .engine import Engine
from .engine_facts import engine_facts
from .event_log import event_log
from .execute import run_carefully, run_fast
from .feed import Feed
from .hooks import watched_hook
from .pipeline_stats import PipelineStats
from .remembered import batch_memory
from .results import Results
from .runtime.image_decoder import ImageDecoder
from .shrinking import ShrinkingPipeline, Turn
from .stages import Stage, Stages
from .task import ActorInfo, Receipt, ScoreTask
from .trace import NullTracer, Tracer
from .tuning import agree_batch_size
from .watchdog import Watchdog

__all__ = ["Scorer", "reading_threads"]


_READERS = 4


def reading_threads(threads: int) -> int:
    """How many threads an actor of so many CPU threads reads with."""
    return max(_READERS, threads)


def _image_decoder(engine: Engine, task: ScoreTask) -> tuple[ImageDecoder | None, str]:
    """What decodes images on the engine's device, or None; and why not, where that is worth a word."""
    made, why = None, ""
    if engine.device_s is not None and task.preprocess is None and task.image_decoder != "cpu":
        # Imported here: it brings the ONNX library along, which actors on CPUs do not need.
        from .runtime.gpu_images import decoder_for

        made, why = decoder_for(engine, task.bindings, task.threads)
    if made is None and task.image_decoder == "gpu":
        raise BackendError(
            f"images cannot be decoded on a GPU here: {why or 'no GPU scores them, or it takes none'}",
            "say --image-decoder auto",
        )
    return made, why


class Scorer:
    """Scores shards for one job on one device; ``score`` may be called by several threads at once.

    Use as a context manager, or call ``close``.

    Args:
        task: The job.
        watchdog: Watches hooks and the engine; stays the caller's to close.

    Raises:
        TrtfleetError: The network cannot be loaded, the backend is missing, or a hook cannot be imported.
    """

    def __init__(self, task: ScoreTask, watchdog: Watchdog | None = None) -> None:
        start = time.monotonic()
        self._task = task
        self._log = event_log(task.log_format, run=task.run, node=socket.gethostname(), pid=os.getpid())
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(self._log.taking_over())
        self._output = Output(Storage(task.output_url), task.generation, task.job)
        watchdog = watchdog or Watchdog()
        preprocess = watched_hook("preprocess", task.preprocess, task.hook_folder, watchdog)
        postprocess = watched_hook("postprocess", task.postprocess, task.hook_folder, watchdog)
        self._engine, not_taken = open_engine(
            task.backend, task.network, settings=task.tensorrt, threads=task.threads
        )
        memory = batch_memory(self._engine, task.network, task.tensorrt)
        device = device_of(self._engine)
        self._agreed = size = agree_batch_size(self._engine, self._output, task.batch_size, memory, device)
        self._memory = memory if size.origin in ("measured", "remembered") else None
        # Image decoding has threads of its own: readers wait for it, so sharing them could deadlock.
        self._readers = ThreadPoolExecutor(reading_threads(task.threads), "reader")
        self._decoders = ThreadPoolExecutor(task.threads, "decoder")
        self.tracer = Tracer() if task.traced else NullTracer()
        self._stages = Stages(self.tracer)
        self._reader = ShardReader(task.projection, self._readers, task.prefetch_bytes, self._stages.measure)
        self._images, images_note = _image_decoder(self._engine, task)
        self._feed = Feed(task, preprocess, self._decoders, self._stages, self._images)
        self._results = Results(self._engine.outputs, postprocess)
        # While the engine holds its fill, as many batches again are being filled and written.
        slots = max(task.slots, 2 * self._engine.depth)
        self._pipeline = ShrinkingPipeline(self._engine, slots, size.rows, self.tracer, watchdog)
        # Only now: what warms the device up is no part of the job.
        self._engine.trace(self.tracer)
        self.info = ActorInfo(
            backend=self._engine.backend,
            device=device,
            not_taken=not_taken,
            batch_size=self._pipeline.batch_size,
            batch_origin=size.origin,
            notes=(*(memory.notes if memory else ()), *([images_note] if images_note else [])),
            node=socket.gethostname(),
            pid=os.getpid(),
            start_s=time.monotonic() - start,
            engine=engine_facts(self._engine),
        )
        self._log.tell(
            "engine_ready",
            backend=self.info.backend,
            device=device,
            not_taken=not_taken or None,
            batch_size=self.info.batch_size,
            seconds=round(self.info.start_s, 3),
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
        if self._images is not None:
            self._images.close()
        self._engine.close()
        self._opened.close()

    @property
    def stats(self) -> PipelineStats:
        """The account of the engine's thread so far; asked for by any thread."""
        return self._pipeline.stats

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
        log = self._log.bound(shard=shard.id, attempt=attempt)
        log.tell("attempt_started", file=shard.file.url, rows=shard.rows)
        try:
            record = self._pipeline.run(
                shard.rows, lambda turn, careful: self._attempt(shard, attempt, turn, careful=careful)
            )
        except Exception as error:
            log.tell("attempt_failed", level="warning", error=type(error).__name__, reason=str(error))
            raise
        won, seconds = record.attempt == attempt, time.monotonic() - start
        log.tell(
            "attempt_done", rows=record.rows, bad_rows=record.bad_rows, won=won, seconds=round(seconds, 3)
        )
        if self._pipeline.batch_size < self._agreed.rows:
            self._forget()
        return Receipt(
            record=record,
            won=won,
            seconds=seconds,
            stats=self._pipeline.stats,
            stages=self._stages.stats,
            notes=(*self.info.notes, *self._pipeline.notes),
        )

    def _forget(self) -> None:
        """Has the next job measure again: what ran out today may be there for it."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.forget()

    def _attempt(self, shard: Shard, attempt: str, turn: Turn, *, careful: bool) -> tuple[CommitRecord, int]:
        pipeline, too_large = turn.pipeline, 0
        bad: list[BadInput] = []
        blocks = self._reader.read(shard, self._feed.block_rows(turn.batch_size))
        batches = self._feed.batches(blocks, turn.batch_size, bad)
        reorder = self._feed.is_ragged
        codec = self._task.compression
        with AttemptWriter(self._output, shard, attempt, codec, reorder=reorder) as writer:
            if careful:
                too_large = run_carefully(
                    pipeline,
                    batches,
                    self._results,
                    writer,
                    bad,
                    self._stages,
                    blames_memory=turn.is_single,
                )
            else:
                run_fast(pipeline, batches, self._results, writer, self._stages)
            with self._stages.measure(Stage.COMMIT):
                return writer.commit(bad), too_large
