"""Two other ways to score images on one GPU: Ray Data and a plain loop.

Both run the network that trtfleet prepares (uint8 in, five best out), in a session with the same options, fed
by ``session.run`` as anybody would. The plain loop's clock starts with the session ready and warm. Ray Data's
own start belongs to it; its rate without it comes from the difference between a small and a larger dataset.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_engine import Variant, open_session
from peers import READ_BLOCKS_PER_CORE, SPARE_LOGICAL_CPUS, WRITE_OPTIONS, cores

__all__ = [
    "RAY_DATA_SETTINGS",
    "RayData",
    "plain_loop",
    "ray_data",
    "start_ray",
]

_MODULES = ("models", "workloads", "peers", "gpu_engine", "gpu_peers")


@dataclass(frozen=True, kw_only=True)
class RayData:
    """What of Ray Data is worth trying, with one actor on the GPU.

    Attributes:
        name: For the table.
        batches: Batches that the actor gets at once; whole blocks, read by the actor itself, Ray Data refuses
            to actors with a GPU.
        is_default_reader: Whether to leave the Parquet reader at its default.
    """

    name: str
    batches: int
    is_default_reader: bool = False


RAY_DATA_SETTINGS = (
    RayData(name="fed batch by batch", batches=1),
    RayData(name="fed four batches at once", batches=4),
    RayData(name="fed batch by batch, default reader", batches=1, is_default_reader=True),
)


def start_ray(device: str) -> AbstractContextManager[None]:
    """Ray on this machine, with its GPU if there is one to use; a Ray that is there already is kept."""
    ray: AbstractContextManager[None] = peers.start_ray(
        max(cores(), 2 + SPARE_LOGICAL_CPUS), 1 if device == "cuda" else 0
    )
    return ray


def plain_loop(
    model: Path, files: Sequence[Path], out: Path, device: str, variant: Variant, batch_rows: int
) -> Iterator[dict[str, Any]]:
    """Read a batch, run it, write it; nothing at the same time. For ``run_apart``; yields once."""
    start_s = time.perf_counter()
    scorer = ImageScorer(model, device, variant, batch_rows)
    with pq.ParquetFile(files[0]) as file:
        scorer(pa.Table.from_batches([next(file.iter_batches(batch_rows))]))
    ready_s = time.perf_counter()
    out.mkdir(parents=True)
    rows = 0
    with contextlib.ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for path in files:
            for block in stack.enter_context(pq.ParquetFile(path)).iter_batches(batch_rows):
                scored = scorer(pa.Table.from_batches([block]))
                if writer is None:
                    target = pq.ParquetWriter(out / "scored.parquet", scored.schema, **WRITE_OPTIONS)
                    writer = stack.enter_context(target)
                writer.write_table(scored)
                rows += len(scored)
    seconds = time.perf_counter() - ready_s
    yield {"rows": rows, "seconds": seconds, "startup_s": ready_s - start_s, "rows_per_s": rows / seconds}


class ImageScorer:
    """The callable class of ``map_batches``, and the plain loop's: Arrow in and out, images not copied.

    Args:
        model: The prepared network.
        device: ``cuda`` or ``cpu``.
        variant: The session's settings.
        batch_rows: Rows of one call to ONNX Runtime; smaller rests are filled up, because another size would
        make
            cuDNN choose its kernels anew.
    """

    def __init__(self, model: Path, device: str, variant: Variant, batch_rows: int) -> None:
        self._session: Any = open_session(model, device, variant=variant)
        self._source = self._session.get_inputs()[0]
        self._names = [target.name for target in self._session.get_outputs()]
        self._batch_rows = batch_rows

    def __call__(self, block: pa.Table) -> pa.Table:
        """Scores one block of ``id`` and ``image``."""
        column = block["image"].combine_chunks()
        shape = tuple(self._source.shape[1:])
        width = int(np.prod(shape))
        pixels = np.frombuffer(column.buffers()[1], np.uint8, len(column) * width, column.offset * width)
        images = pixels.reshape(-1, *shape)
        parts = [
            self._run(images[at : at + self._batch_rows]) for at in range(0, len(images), self._batch_rows)
        ]
        answers = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        columns = {name: _lists(array) for name, array in zip(self._names, answers, strict=True)}
        return pa.table({"id": block["id"], **columns})

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        rows = len(images)
        if rows < self._batch_rows:
            images = np.concatenate([images, np.repeat(images[-1:], self._batch_rows - rows, axis=0)])
        return [array[:rows] for array in self._session.run(None, {self._source.name: images})]


def ray_data(
    settings: RayData,
    model: Path,
    files: Sequence[Path],
    out: Path,
    *,
    device: str,
    variant: Variant,
    batch_rows: int,
) -> float:
    """Scores the images with Ray Data; returns the seconds of the whole call."""
    import ray
    import ray.data

    # Workers cannot import this folder's modules.
    for name in _MODULES:
        if name in sys.modules:
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = settings.is_default_reader
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    start_s = time.perf_counter()
    dataset = ray.data.read_parquet(
        [str(path) for path in files],
        columns=["id", "image"],
        override_num_blocks=READ_BLOCKS_PER_CORE * cores(),
    )
    scored = dataset.map_batches(
        ImageScorer,
        fn_constructor_args=(model, device, variant, batch_rows),
        batch_size=settings.batches * batch_rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else 0,
    )
    scored.write_parquet(str(out), concurrency=1, **WRITE_OPTIONS)
    return time.perf_counter() - start_s


def _lists(array: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
