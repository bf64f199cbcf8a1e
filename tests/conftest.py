"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray cluster in this process for all tests that score; ``connect`` finds and keeps it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def digits() -> tuple[Path, Path]:
    """The demo's model and dataset."""
    folder = REPOSITORY / "jobs" / "demo_data"
    return folder / "digits.onnx", folder / "digits.parquet"


@pytest.fixture
def linear_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model ``y = x @ W`` with x: float32[N, features], y: float32[N, outputs] and W known."""

    def write(features: int = 4, outputs: int = 2, batch: int | str = "N", name: str = "linear.onnx") -> Path:
        weights = np.arange(features * outputs, dtype=np.float32).reshape(features, outputs) / 8
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, features])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
            [numpy_helper.from_array(weights, "w")],
        )
        opset = [helper.make_opsetid("", 17)]
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path

    return write


@pytest.fixture
def vectors(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Parquet file with ``id`` int64 and ``x`` fixed_size_list<float32>[features], seeded."""

    def write(
        rows: int = 1000, features: int = 4, row_group_rows: int = 100, name: str = "vectors.parquet"
    ) -> Path:
        values = np.random.default_rng(rows).random((rows, features), dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), features)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": np.arange(rows), "x": lists}), path, row_group_size=row_group_rows)
        return path

    return write
