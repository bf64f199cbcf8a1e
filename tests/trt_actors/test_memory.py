"""A dataset larger than the memory that the process may have."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.datasets.output import Output
from trtfleet.datasets.storage import Storage

_LIMIT_BYTES = 700 << 20
_SIDE = 256
_IMAGE_BYTES = 3 * _SIDE * _SIDE
_GROUP_ROWS = 256
_GROUPS = 44

_PROCESS = """
import pickle, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
from trtfleet.trt_actors.scorer import Scorer

task, shards, limit, what = pickle.loads(Path(sys.argv[1]).read_bytes())
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
if what == "score":
    with Scorer(task) as scorer, ThreadPoolExecutor(2) as threads:
        for receipt in threads.map(lambda shard: scorer.score(shard, "a"), shards):
            assert receipt.won
else:
    try:
        pq.read_table(shards[0].file.url)
    except MemoryError:
        sys.exit(42)
# Not ru_maxrss: a child of a large process starts with its parent's peak.
with open("/proc/self/status") as status:
    peak = next(line for line in status if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, Path]:
    """Images, each of one colour, that take 2.2 GB in memory and little on disk; and a model for them."""
    corner = [
        numpy_helper.from_array(np.array(values, np.int64), name)
        for name, values in (("starts", [0, 0]), ("ends", [1, 1]), ("axes", [2, 3]), ("flat", [-1, 3]))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["corner"]),
            helper.make_node("Reshape", ["corner", "flat"], ["pixel"]),
            helper.make_node("Cast", ["pixel"], ["colour"], to=TensorProto.INT32),
        ],
        "colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("colour", TensorProto.INT32, ["N", 3])],
        corner,
    )
    model = tmp_path / "colour.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    metadata = {"trtfleet.dtype": "uint8", "trtfleet.shape": f"3,{_SIDE},{_SIDE}"}
    image = pa.field("image", pa.binary(_IMAGE_BYTES), metadata=metadata)
    schema = pa.schema([pa.field("id", pa.int64()), image])
    data = tmp_path / "images.parquet"
    with pq.ParquetWriter(
        data, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:
        for group in range(_GROUPS):
            colours = np.repeat(np.arange(_GROUP_ROWS, dtype=np.uint8), _IMAGE_BYTES)
            images = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(_IMAGE_BYTES), _GROUP_ROWS, [None, pa.py_buffer(colours)]
            )
            ids = pa.array(range(group * _GROUP_ROWS, (group + 1) * _GROUP_ROWS))
            writer.write_table(pa.table([ids, images], schema=schema), row_group_size=_GROUP_ROWS)
    return model, data


def _run(folder: Path, task: Any, shards: Any, what: str) -> subprocess.CompletedProcess[str]:
    (folder / "orders").write_bytes(pickle.dumps((task, shards, _LIMIT_BYTES, what)))
    command = [sys.executable, "-c", textwrap.dedent(_PROCESS), str(folder / "orders")]
    # Arrow's default allocator reserves a gigabyte of addresses at once, which the limit would count.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_memory_is_bounded_and_independent_of_the_dataset(
    large: tuple[Path, Path], planned: Callable[..., Any], tmp_path: Path
) -> None:
    model, data = large
    assert data.stat().st_size < 20 << 20
    assert _GROUPS * _GROUP_ROWS * _IMAGE_BYTES > 2 << 30
    job = planned(model, data, keep="id", batch_size=32, shard_bytes=64 << 20)
    scored = _run(tmp_path, job.task, job.shards, "score")
    assert scored.returncode == 0, scored.stderr
    assert int(scored.stdout) < _LIMIT_BYTES

    output = Output.latest(Storage(tmp_path / "out"))
    assert output is not None
    committed = output.committed()
    ids, colours = [], []
    for shard in job.shards:
        part = job.part(committed[shard.id])
        ids += part["id"].to_pylist()
        colours += part["colour"].to_pylist()
    assert ids == list(range(_GROUPS * _GROUP_ROWS))
    assert colours == [[row % _GROUP_ROWS] * 3 for row in ids]

    # The limit is a real one: the table as a whole does not fit below it.
    whole = _run(tmp_path, job.task, job.shards, "read")
    assert whole.returncode == 42, whole.stderr
