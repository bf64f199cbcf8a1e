"""Two nodes of which one is five times as fast: how near a job comes to the sum of what each does alone.

    python benchmarks/mixed_speeds.py                # about two minutes
    python benchmarks/mixed_speeds.py --shards 40    # fewer shards weigh more at the end

The nodes are Ray's, on this machine; their speed is how long a hook sleeps for every batch, so that two cores
are enough. Each node scores the dataset alone, then both together. The ideal is that their rates add up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from onnx import TensorProto, helper
from ray.cluster_utils import Cluster
from trtfleet import score

GOAL = 1.10
ROWS = 10
_CPUS = 5
_HOOK = """
import os, time

def by_node(batch):
    time.sleep(float(os.environ["HOOK_SECONDS"]))
    return batch
"""


def main() -> int:
    """Prints the table; returns 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fast-s", type=float, default=0.2, help="seconds of a batch on the fast node")
    parser.add_argument("--factor", type=float, default=5.0, help="how much slower the other one is")
    parser.add_argument("--shards", type=int, default=120, help="pieces of the dataset, a batch each")
    parser.add_argument("--json", help="where the results go")
    options = parser.parse_args()
    slow_s = options.fast_s * options.factor
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work, options.shards)
        found = {
            "fast": _seconds(work, options.shards, [options.fast_s]),
            "slow": _seconds(work, options.shards, [slow_s]),
            "both": _seconds(work, options.shards, [options.fast_s, slow_s]),
        }
    ideal_s = 1 / (1 / found["fast"] + 1 / found["slow"])
    ratio = found["both"] / ideal_s
    print("| nodes | seconds | shards/s |\n|---|--:|--:|")
    for name, seconds in [*found.items(), ("ideal", ideal_s)]:
        print(f"| {name} | {seconds:.2f} | {options.shards / seconds:.2f} |")
    print(f"both by the ideal split: {ratio:.3f} x, goal <= {GOAL}: {'met' if ratio <= GOAL else 'MISSED'}")
    if options.json:
        Path(options.json).write_text(json.dumps({**found, "ideal": ideal_s, "ratio": ratio}))
    return int(ratio > GOAL)


def _prepare(work: Path, shards: int) -> None:
    (work / "mixed_hook.py").write_text(_HOOK)
    values = np.random.default_rng(0).random((shards * ROWS, 4), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    pq.write_table(pa.table({"x": column}), work / "data.parquet", row_group_size=ROWS)
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, work / "relu.onnx")


def _seconds(work: Path, shards: int, nodes: list[float]) -> float:
    """From the first actor being ready to the last commit, with a node for each time of a batch."""
    os.environ["PYTHONPATH"] = str(work)
    sys.path.insert(0, str(work))
    # The head is too small for an actor.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for seconds in nodes:
            os.environ["HOOK_SECONDS"] = str(seconds)
            cluster.add_node(num_cpus=_CPUS)
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        summary = score(
            work / "relu.onnx",
            work / "data.parquet",
            work / f"out-{'-'.join(map(str, nodes))}",
            preprocess="mixed_hook:by_node",
            columns="x",
            batch_size=ROWS,
            shard_bytes=ROWS * 24,
            cpus_per_actor=_CPUS,
        )
        if summary.shards != shards:
            raise RuntimeError(f"the dataset was cut into {summary.shards} shards, not {shards}")
        return summary.scoring_s
    finally:
        ray.shutdown()
        cluster.shutdown()
        sys.path.remove(str(work))


if __name__ == "__main__":
    sys.exit(main())
