"""Writes what the installed version leaves behind, as a fixture for later ones.

    python tests/upgrades/make_fixture.py tests/upgrades/fixtures/format-1

Run it with the last release of a format, before the format's number grows; fixtures are never written anew.
The outputs are of a bucket, where files have the same name and version on every machine. From format 2 on
they replace earlier ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

BUCKET = "trtfleet-upgrade"
OPTIONS: dict[str, Any] = {
    "input": {"x": "x"},
    "keep": "id",
    "shard_bytes": 400,
    "batch_size": 8,
    "backend": "onnxruntime-cpu",
    "actors": 1,
}


class Killed(BaseException):
    """Ends a job where a kill would."""


def download(client: Any, prefix: str, folder: Path) -> None:
    """Copies the objects below a prefix to a folder."""
    for found in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", []):
        path = folder / found["Key"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(client.get_object(Bucket=BUCKET, Key=found["Key"])["Body"].read())


def make_input(folder: Path) -> None:
    """Writes a model and a dataset of 60 rows in six row groups."""
    import numpy as np
    import onnx
    import pyarrow as pa
    import pyarrow.parquet as pq
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2) / 8, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weights],
    )
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    values = pa.array(np.arange(240, dtype=np.float32))
    table = pa.table({"id": np.arange(60), "x": pa.FixedSizeListArray.from_arrays(values, 4)})
    pq.write_table(table, folder / "data.parquet", row_group_size=10)


def make_cache(folder: Path) -> None:
    """Writes an engine, a batch size and a calibration table."""
    from trtfleet.trt_actors.building.options import BuildOptions
    from trtfleet.trt_actors.cache.batch_sizes import BatchSize, keep_batch_size
    from trtfleet.trt_actors.cache.identity import Identity
    from trtfleet.trt_actors.cache.store import EngineCache
    from trtfleet.trt_actors.calibration.table import CalibrationTable
    from trtfleet.trt_actors.calibration.table_store import TableStore
    from trtfleet.trt_actors.calibration.tensor_range import TensorRange
    from trtfleet.trt_actors.calibration.thresholds import scale_of

    identity = Identity(
        model="a" * 64,
        options=BuildOptions().as_identity(),
        flavour="tensorrt",
        version="10.16",
        compute_capability="9.0",
        gpu="NVIDIA H100",
    )
    cache = EngineCache(folder)
    cache.publish(identity, {"segment-000.plan": b"a plan", "layout.json": b"{}"}, extra={"a": 1})
    keep_batch_size(cache.objects, BatchSize(identity=identity, rows=256, rows_per_s=11_700.0))
    values = TensorRange(
        threshold=1.0,
        scale=scale_of(1.0),
        minimum=-1.0,
        maximum=1.0,
        count=10,
        zeros=0,
        clipped=0.0,
        histogram=(),
        bin_width=0.0,
    )
    TableStore(folder).put(
        CalibrationTable(
            model="b" * 64,
            model_name="m.onnx",
            method="minmax",
            samples=10,
            seed=0,
            batch_size=2,
            feed={"normalize": None},
            tensors={"x": values},
        )
    )


def main() -> None:
    """Writes the fixture."""
    import boto3
    import ray
    from moto.server import ThreadedMotoServer
    from trtfleet import score
    from trtfleet.datasets.output import Output
    from trtfleet.jobs import score as module

    folder = Path(sys.argv[1])
    make_input(folder / "input")
    make_cache(folder / "cache")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    data = (folder / "input" / "data.parquet").read_bytes()
    client.put_object(Bucket=BUCKET, Key="data/data.parquet", Body=data)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    model, source = folder / "input" / "model.onnx", f"s3://{BUCKET}/data/"
    for name in ("finished", "interrupted"):
        score(model, source, f"s3://{BUCKET}/{name}", emit="softmax", **OPTIONS)
    score(model, source, f"s3://{BUCKET}/finished", overwrite=True, **OPTIONS)
    with patch.object(module, "finish_job", side_effect=Killed):
        try:
            score(model, source, f"s3://{BUCKET}/interrupted", overwrite=True, **OPTIONS)
        except Killed:
            pass
    from trtfleet.datasets.storage import Storage

    output = Output.latest(Storage(f"s3://{BUCKET}/interrupted"))
    assert output is not None
    # As if the kill had come one shard earlier.
    last = sorted(output.committed().values(), key=lambda record: record.shard)[-1]
    output.storage.delete([output.path("commits", f"{last.shard}.json")])
    for name in ("finished", "interrupted"):
        download(client, f"{name}/", folder)
    ray.shutdown()
    server.stop()


if __name__ == "__main__":
    main()
