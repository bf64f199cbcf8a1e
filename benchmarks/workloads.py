"""What the benchmark scores: models and Parquet datasets, made once from fixed seeds and kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
from models import resnet18, small_resnet
from onnx import TensorProto, helper
from trtfleet.trt_actors.graph import Normalize, StoredInput, prepare
from trtfleet.trt_actors.model import load_model

__all__ = ["WORKLOADS", "Case", "Workload", "made", "make_case", "make_scalars", "open_session", "score_rows"]

DIGITS = Path(__file__).resolve().parent.parent / "jobs" / "demo_data"
FILES = 8
LEAST_ROWS = FILES
BLOCK_BYTES = 8 << 20
TRIAL_ROWS = 2048
LEAST_TRIAL_ROWS = 32
TRIALS = 3
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with a dataset of uint8 images.

    Attributes:
        name: As on the command line.
        bound_by: What is expected to limit it.
        rows: Rows at full size.
        shape: Of one image, channels first.
        normalize: As ``--normalize`` takes it.
        build: Makes the model; None for the demo's.
    """

    name: str
    bound_by: str
    rows: int
    shape: tuple[int, int, int]
    normalize: str
    build: Callable[[], onnx.ModelProto] | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A workload whose files are there.

    Attributes:
        workload: What it was made from.
        rows: Rows of the dataset.
        files: The Parquet files, in dataset order: ``id`` int64 from 0, ``image`` FixedSizeBinary.
        block_rows: Rows of a row group.
        model: The model as trained: float32 images in.
        prepared: The same with normalization in front: uint8 images in. What every peer runs.
        batch_rows: The fastest batch size of ``prepared`` by number of threads, for the peers without a
            measurement of their own.
    """

    workload: Workload
    rows: int
    files: tuple[Path, ...]
    block_rows: int
    model: Path
    prepared: Path
    batch_rows: dict[int, int]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="digits",
            bound_by="data plane",
            rows=2_000_000,
            shape=(1, 8, 8),
            normalize="0:16",
        ),
        Workload(
            name="small_resnet",
            bound_by="balanced",
            rows=12_000,
            shape=(3, 64, 64),
            normalize="imagenet",
            build=small_resnet,
        ),
        Workload(
            name="resnet18",
            bound_by="compute",
            rows=2400,
            shape=(3, 224, 224),
            normalize="imagenet",
            build=resnet18,
        ),
    )
}


def make_case(workload: Workload, work: Path, rows_scale: float, threads: tuple[int, ...]) -> Case:
    """Makes what is missing of a workload's files and finds good batch sizes.

    Args:
        workload: What to make.
        work: Folder that keeps models and datasets between runs.
        rows_scale: Fraction of the full size.
        threads: Numbers of threads to find a batch size for.
    """
    rows = max(LEAST_ROWS, round(workload.rows * rows_scale))
    work.mkdir(parents=True, exist_ok=True)
    block_rows = max(1, min(BLOCK_BYTES // workload.row_bytes, -(-rows // FILES)))
    model = _model(workload, work)
    prepared = work / f"{workload.name}-prepared.onnx"
    network = prepare(
        load_model(model),
        stored={"image": StoredInput(dtype=np.dtype(np.uint8))},
        normalize=Normalize.parse(workload.normalize),
    )
    prepared.write_bytes(network.model_bytes)
    folder = made(work / f"{workload.name}-{rows}", lambda path: _images(workload, path, rows, block_rows))
    files = tuple(sorted(folder.glob("*.parquet")))
    trial = _block(workload, 0, min(block_rows, TRIAL_ROWS))
    return Case(
        workload=workload,
        rows=rows,
        files=files,
        block_rows=block_rows,
        model=model,
        prepared=prepared,
        batch_rows={count: _fastest_batch(prepared, trial, count) for count in threads},
    )


def make_scalars(work: Path, groups: int, group_rows: int) -> tuple[Path, Path]:
    """Makes a network that does nothing and a Parquet file with one float32 column ``x``.

    Returns:
        The model, ``y = x`` for float32[N], and the file, with row groups of ``group_rows`` rows each.
    """
    network = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], "nothing")],
        "empty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    work.mkdir(parents=True, exist_ok=True)
    model = work / "empty.onnx"
    onnx.save(
        helper.make_model(network, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(model)
    )
    data = work / f"scalars-{groups}x{group_rows}.parquet"
    values = np.random.default_rng(SEED).random(groups * group_rows, dtype=np.float32)
    pq.write_table(pa.table({"x": values}), data, row_group_size=group_rows, use_dictionary=False)
    return model, data


def open_session(model: Path | bytes, threads: int) -> ort.InferenceSession:
    """Opens a model on the CPU with ``threads`` threads in an operator, one operator at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def score_rows(session: ort.InferenceSession, images: np.ndarray, batch_rows: int) -> np.ndarray:
    """Runs images, uint8 [n, ...], through a session in batches; returns float32 [n, classes]."""
    feed = session.get_inputs()[0].name
    starts = range(0, len(images), batch_rows)
    parts = [session.run(None, {feed: images[start : start + batch_rows]})[0] for start in starts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def made(target: Path, make: Callable[[Path], None]) -> Path:
    """Makes a folder once; an interrupted attempt leaves none under its name."""
    if not target.exists():
        draft = target.with_name(f"{target.name}.{os.getpid()}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(target)
    return target


def _model(workload: Workload, work: Path) -> Path:
    if workload.build is None:
        return DIGITS / "digits.onnx"
    build = workload.build
    name = f"{workload.name}.onnx"
    return made(work / f"{workload.name}-model", lambda path: onnx.save(build(), str(path / name))) / name


def _images(workload: Workload, folder: Path, rows: int, block_rows: int) -> None:
    metadata = {"trtfleet.dtype": "uint8", "trtfleet.shape": ",".join(map(str, workload.shape))}
    width = workload.row_bytes
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("image", pa.binary(width), nullable=False, metadata=metadata),
        ]
    )
    edges = [rows * number // FILES for number in range(FILES + 1)]
    for number, (first, end) in enumerate(pairwise(edges)):
        with pq.ParquetWriter(
            folder / f"images-{number:02d}.parquet", schema, use_dictionary=False, write_statistics=["id"]
        ) as writer:
            for start in range(first, end, block_rows):
                count = min(block_rows, end - start)
                pixels = pa.py_buffer(np.ascontiguousarray(_block(workload, start, count)))
                images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, [None, pixels])
                ids = pa.array(np.arange(start, start + count))
                writer.write_batch(pa.record_batch([ids, images], schema=schema))


def _block(workload: Workload, start: int, count: int) -> np.ndarray:
    """Images ``start`` to ``start + count``: the demo's digits over and over, or noise."""
    if workload.build is not None:
        shape = (count, *workload.shape)
        return np.random.default_rng([SEED, start]).integers(0, 256, shape, dtype=np.uint8)
    column = pq.read_table(DIGITS / "digits.parquet", columns=["image"])["image"].combine_chunks()
    digits = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, *workload.shape)
    return digits[np.arange(start, start + count) % len(digits)]


def _fastest_batch(model: Path, images: np.ndarray, threads: int) -> int:
    """Tries batch sizes in turns, several times, because other work on the machine disturbs single trials."""
    session = open_session(model, threads)
    sizes = [1 << power for power in range(2, 11) if power == 2 or 1 << power <= len(images)]
    seconds = dict.fromkeys(sizes, float("inf"))
    for size in sizes * TRIALS:
        rows = min(len(images), max(2 * size, LEAST_TRIAL_ROWS))
        before = time.perf_counter()
        score_rows(session, images[:rows], size)
        seconds[size] = min(seconds[size], (time.perf_counter() - before) / rows)
    return min(seconds, key=seconds.__getitem__)
