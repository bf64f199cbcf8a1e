"""Three ways to score the same dataset with the same network: trtfleet, Ray Data and a plain loop."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from workloads import Case, open_session, score_rows

import trtfleet

__all__ = ["PLAIN", "RAY_DATA", "TRTFLEET", "Peer", "cores", "peers_for", "start_ray"]

TRTFLEET = "trtfleet"
RAY_DATA = "ray data"
PLAIN = "plain loop"
LOGICAL_CPUS_PER_CORE = 4
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
        run: Scores a case into a folder that does not exist yet: Parquet with ``id`` and ``logits``.
    """

    kind: str
    name: str
    run: Callable[[Case, Path], None]


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def peers_for(threads: tuple[int, ...]) -> list[Peer]:
    """The peers in the order in which they take turns; the plain loop once per number of threads."""
    actors = cores()
    return [
        Peer(
            kind=TRTFLEET,
            name=f"{TRTFLEET}, {actors} actors",
            run=lambda case, out: _trtfleet(case, out, actors),
        ),
        Peer(
            kind=RAY_DATA,
            name=f"{RAY_DATA}, {actors} actors",
            run=lambda case, out: _ray_data(case, out, actors),
        ),
        *(
            Peer(
                kind=PLAIN,
                name=f"{PLAIN}, {count} thread{'s' if count > 1 else ''}",
                run=lambda case, out, count=count: _plain_loop(case, out, count),  # type: ignore[misc]
            )
            for count in threads
        ),
    ]


@contextlib.contextmanager
def start_ray() -> Any:
    """Ray on this machine with more logical CPUs than cores: Ray Data waits forever without spare ones.

    Also imports what the peers import at first use, so that no peer's time contains it. A Ray that this
    process already has is used and kept.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    import trtfleet.jobs.score  # noqa: F401

    with contextlib.suppress(ImportError):
        import ray.data  # noqa: F401

    if ray.is_initialized():
        yield
        return
    ray.init(
        num_cpus=LOGICAL_CPUS_PER_CORE * cores(),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield
    finally:
        ray.shutdown()


def _trtfleet(case: Case, out: Path, actors: int) -> None:
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


def _plain_loop(case: Case, out: Path, threads: int) -> None:
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
        model: The serialized network.
        shape: Of one image.
        batch_rows: Rows of one call to ONNX Runtime.
    """

    def __init__(self, model: bytes, shape: tuple[int, ...], batch_rows: int) -> None:
        self._session: ort.InferenceSession = open_session(model, 1)
        self._shape = shape
        self._batch_rows = batch_rows

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one block of Ray Data."""
        block = block.combine_chunks()
        images = _images(block["image"].chunk(0), self._shape)
        logits = score_rows(self._session, images, self._batch_rows)
        return pa.table({"id": block["id"], "logits": _lists(logits)})


def _ray_data(case: Case, out: Path, actors: int) -> None:
    """The fastest settings found, see README.md.

    ``batch_size=None`` hands over whole blocks and lets Ray Data fuse reading into the actors, which saves the
    way of the images through the object store.
    """
    import ray
    import ray.data

    # The modules are found by the script's folder, which a worker of an existing cluster does not know.
    for name in ("models", "workloads", "peers"):
        if name in sys.modules:
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.read_parquet([str(path) for path in case.files], columns=["id", "image"])
    scored = dataset.map_batches(
        RayDataScorer,
        fn_constructor_args=(case.prepared.read_bytes(), case.workload.shape, case.batch_rows[1]),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    scored.write_parquet(str(out), **WRITE_OPTIONS)


def _images(column: pa.FixedSizeBinaryArray, shape: tuple[int, ...]) -> np.ndarray:
    """The column's bytes as uint8 [n, *shape], not copied."""
    width = int(np.prod(shape))
    pixels = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
    return pixels.reshape(-1, *shape)


def _lists(logits: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1])
