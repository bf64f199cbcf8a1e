"""Three ways to score the same dataset with the same network: trtfleet, Ray Data and a plain loop."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import trtfleet
from workloads import Case, open_session, score_rows

__all__ = ["PLAIN", "RAY_DATA", "TRTFLEET", "Peer", "all_peers", "cores", "start_ray", "thread_settings"]

TRTFLEET = "trtfleet"
RAY_DATA = "ray data"
PLAIN = "plain loop"
SPARE_LOGICAL_CPUS = 2
READ_BLOCKS_PER_CORE = 4
BATCH_BYTES = 1 << 20
COMPRESSION = "snappy"
# Float columns gain nothing from a dictionary or statistics; trtfleet writes neither.
WRITE_OPTIONS: dict[str, Any] = {
    "compression": COMPRESSION,
    "use_dictionary": False,
    "write_statistics": ["id"],
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to score.

    Attributes:
        kind: ``TRTFLEET``, ``RAY_DATA`` or ``PLAIN``.
        name: The kind with its settings.
        threads: Of one session of ONNX Runtime.
        run: Scores a case into a folder that does not exist yet: Parquet with ``id`` and ``logits``.
    """

    kind: str
    name: str
    threads: int = 1
    run: Callable[[Case, Path], None]


@dataclass(frozen=True, kw_only=True)
class RayDataSettings:
    """What of Ray Data is worth trying.

    Attributes:
        name: For the table.
        actors: Size of the actor pool.
        threads: Of each actor's session.
        is_fused: Whether an actor gets whole blocks, which lets Ray Data fuse reading into the actors and
            saves the images the way through the object store; otherwise batches of about ``BATCH_BYTES``.
        is_default_reader: Whether to leave the Parquet reader at Ray 2.60's default. It takes longer to start
            and ignores ``override_num_blocks``; it is here to show what the other settings gain.
    """

    name: str
    actors: int
    threads: int
    is_fused: bool
    is_default_reader: bool = False


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def thread_settings() -> tuple[int, ...]:
    """The plain loop's numbers of threads: one, and one per core."""
    return tuple(dict.fromkeys((1, cores())))


def ray_data_settings() -> list[RayDataSettings]:
    """The settings of Ray Data that the benchmark tries before it stays with the fastest."""
    count = cores()
    return [
        RayDataSettings(name=f"{count} actors that read", actors=count, threads=1, is_fused=True),
        RayDataSettings(
            name=f"{count} actors, default reader",
            actors=count,
            threads=1,
            is_fused=True,
            is_default_reader=True,
        ),
        RayDataSettings(name=f"{count} actors that are fed", actors=count, threads=1, is_fused=False),
        RayDataSettings(name=f"1 actor that reads, {count} threads", actors=1, threads=count, is_fused=True),
    ]


def all_peers() -> list[Peer]:
    """The peers in the order in which they take turns; Ray Data and the plain loop once per setting."""
    actors = cores()
    return [
        Peer(kind=TRTFLEET, name=f"{TRTFLEET}, {actors} actors", run=partial(_trtfleet, actors)),
        *(
            Peer(kind=RAY_DATA, name=f"{RAY_DATA}, {s.name}", threads=s.threads, run=partial(_ray_data, s))
            for s in ray_data_settings()
        ),
        *(
            Peer(
                kind=PLAIN,
                name=f"{PLAIN}, {count} thread{'s' if count > 1 else ''}",
                threads=count,
                run=partial(_plain_loop, count),
            )
            for count in thread_settings()
        ),
    ]


@contextlib.contextmanager
def start_ray(logical_cpus: int | None = None, gpus: int | None = None) -> Any:
    """Ray on this machine, by default with more logical CPUs than cores: Ray Data waits forever without
    spare ones.

    Also imports what the peers import at first use, so that no peer's time contains it. A Ray that this
    process already has is used and kept.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    import trtfleet.jobs.score  # noqa: F401

    with contextlib.suppress(ImportError):
        import ray.data

    if ray.is_initialized():
        yield
        return
    ray.init(
        "local",
        num_cpus=logical_cpus or cores() + SPARE_LOGICAL_CPUS,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _trtfleet(actors: int, case: Case, out: Path) -> None:
    """What a user would call; batch and shard size are left to it."""
    trtfleet.score(
        case.model,
        case.files,
        out,
        keep="id",
        normalize=case.workload.normalize,
        compression=COMPRESSION,
        actors=actors,
    )


def _plain_loop(threads: int, case: Case, out: Path) -> None:
    """Read a row group, run it in batches, write it; nothing at the same time."""
    session = open_session(case.prepared, threads)
    out.mkdir()
    writer: pq.ParquetWriter | None = None
    with contextlib.ExitStack() as stack:
        for path in case.files:
            file = stack.enter_context(pq.ParquetFile(path))
            for block in file.iter_batches(case.block_rows, use_threads=threads > 1):
                images = _images(block["image"], case.workload.shape)
                logits = score_rows(session, images, case.batch_rows[threads])
                scored = pa.table({"id": block["id"], "logits": _lists(logits)})
                if writer is None:
                    target = pq.ParquetWriter(out / "scored.parquet", scored.schema, **WRITE_OPTIONS)
                    writer = stack.enter_context(target)
                writer.write_table(scored)


class RayDataScorer:
    """The callable class of ``map_batches``: Arrow in and out, so that no column is converted or copied.

    Args:
        model: The network's file.
        threads: Of the session.
        shape: Of one image.
        batch_rows: Rows of one call to ONNX Runtime.
    """

    def __init__(self, model: Path, threads: int, shape: tuple[int, ...], batch_rows: int) -> None:
        self._session: ort.InferenceSession = open_session(model, threads)
        self._shape = shape
        self._batch_rows = batch_rows

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one block of Ray Data."""
        block = block.combine_chunks()
        images = _images(block["image"].chunk(0), self._shape)
        logits = score_rows(self._session, images, self._batch_rows)
        return pa.table({"id": block["id"], "logits": _lists(logits)})


def _ray_data(settings: RayDataSettings, case: Case, out: Path) -> None:
    import ray
    import ray.data

    # Workers of a cluster that this script did not start cannot import its modules.
    for name in ("models", "workloads", "peers"):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = settings.is_default_reader
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_parquet(
        [str(path) for path in case.files],
        columns=["id", "image"],
        override_num_blocks=READ_BLOCKS_PER_CORE * cores(),
    )
    batch_rows = case.batch_rows[settings.threads]
    scored = dataset.map_batches(
        RayDataScorer,
        fn_constructor_args=(case.prepared, settings.threads, case.workload.shape, batch_rows),
        batch_size=None if settings.is_fused else max(batch_rows, BATCH_BYTES // case.workload.row_bytes),
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=settings.actors),
        num_cpus=1,
    )
    scored.write_parquet(str(out), concurrency=1, **WRITE_OPTIONS)


def _images(column: pa.FixedSizeBinaryArray, shape: tuple[int, ...]) -> np.ndarray:
    """The column's bytes as uint8 [n, *shape], not copied."""
    width = int(np.prod(shape))
    pixels = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return pixels.reshape(-1, *shape)


def _lists(logits: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
