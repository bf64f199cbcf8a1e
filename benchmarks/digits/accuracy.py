"""INT8 accuracy on held-out digits: each network calibrated by each method, quantized and scored.

    pip install .
    python benchmarks/digits/accuracy.py

Ranges come from rows of the train split alone, drawn as `trtfleet calibrate` draws them, in one process. What
is printed is the table of docs/int8.md. ONNX Runtime scores both precisions on the CPU, without merging the
quantizers into other operators first: what the graph says is what is measured.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from trtfleet.benchmarks.digits.upscale import upscaled
from trtfleet.datasets.sampling import plan_units
from trtfleet.jobs.calibrate_plan import CalibratePlan, make_calibrate_plan
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.trt_actors.calibration.calibrator import Calibrator
from trtfleet.trt_actors.calibration.statistics import Statistics, decode, merge_all
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.thresholds import Method
from trtfleet.trt_actors.quantization.quantize import quantize

__all__ = ["METHODS", "NETWORKS", "NORMALIZE", "Digits", "Score", "calibrated", "measure"]

HERE = Path(__file__).resolve().parent
DEMO = HERE.parents[1] / "jobs" / "demo_data"

NETWORKS: Mapping[str, Path] = {"digits": DEMO / "digits.onnx", "deep": HERE / "deep.onnx"}
"""The demo's network, and a deeper one on the same digits upscaled to 32x32."""

METHODS = ("entropy", "percentile:99.99", "mse", "minmax")
NORMALIZE = "0:16"
_BATCH_ROWS = 32
_UNIT_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class Digits:
    """One network and the rows it takes.

    Attributes:
        model: Its ONNX file.
        train: Rows to calibrate on, as a table.
        held_out: Rows to score.
    """

    model: Path
    train: pa.Table
    held_out: pa.Table

    @classmethod
    def of(cls, network: str) -> Digits:
        """The demo's rows, in the size that the network takes."""
        table = pq.read_table(DEMO / "digits.parquet")
        if network == "deep":
            table = upscaled(table)
        splits = [table.filter(pc.equal(table["split"], name)) for name in ("train", "held-out")]
        return cls(model=NETWORKS[network], train=splits[0], held_out=splits[1])

    def predictions(self, model: onnx.ModelProto) -> npt.NDArray[np.int64]:
        """The digit that a model sees in each held-out row."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        row = [int(size) for size in session.get_inputs()[0].shape[1:]]
        raw = np.frombuffer(b"".join(self.held_out["image"].to_pylist()), np.uint8)
        pixels = raw.reshape(-1, *row).astype(np.float32) / np.float32(16)
        (logits,) = session.run(["logits"], {"image": pixels})
        found: npt.NDArray[np.int64] = logits.argmax(axis=1)
        return found


@dataclass(frozen=True, kw_only=True)
class Score:
    """Held-out accuracy of one network calibrated in one way.

    Attributes:
        network: Its name.
        method: How thresholds were chosen.
        rows: Held-out rows.
        fp32: How many of them are right in single precision.
        int8: How many are right in INT8.
        agreeing: In how many the answer is the same.
    """

    network: str
    method: str
    rows: int
    fp32: int
    int8: int
    agreeing: int

    @property
    def loss_points(self) -> float:
        """Percentage points of accuracy that INT8 loses; below zero when it gains."""
        return 100 * (self.fp32 - self.int8) / self.rows


def calibrated(digits: Digits, folder: Path, methods: Sequence[str] = METHODS) -> dict[str, CalibrationTable]:
    """Observes the sampled training rows once, in this process, and makes a table for each method."""
    data = folder / "train.parquet"
    pq.write_table(digits.train, data, row_group_size=300)
    spec = CalibrateSpec(
        model=str(digits.model),
        data=(str(data),),
        normalize=NORMALIZE,
        batch_size=_BATCH_ROWS,
        backend="onnxruntime-cpu",
        cache=str(folder / "cache"),
    )
    plan = make_calibrate_plan(spec)
    statistics = _observed(plan)
    return {
        text: CalibrationTable.from_statistics(
            statistics,
            model=plan.model.digest,
            model_name=digits.model.name,
            method=Method.parse(text),
            samples=len(plan.rows),
            seed=spec.seed,
            batch_size=plan.batch_size,
            feed=plan.feed,
        )
        for text in methods
    }


def _observed(plan: CalibratePlan) -> Statistics:
    units = plan_units(plan.dataset.files, plan.rows, batch_size=plan.batch_size, unit_batches=_UNIT_BATCHES)
    with Calibrator(plan.task(1)) as calibrator:
        receipts = [calibrator.observe(unit) for unit in units]
    return merge_all(decode(receipt.statistics) for receipt in receipts)


def measure(network: str, folder: Path, methods: Sequence[str] = METHODS) -> list[Score]:
    """Held-out accuracy of one network in FP32 and, with each method, in INT8."""
    digits = Digits.of(network)
    whole = onnx.load(str(digits.model))
    labels, before = digits.held_out["label"].to_numpy(), digits.predictions(whole)
    found = []
    for method, table in calibrated(digits, folder, methods).items():
        after = digits.predictions(quantize(whole, table))
        found.append(
            Score(
                network=network,
                method=method,
                rows=len(labels),
                fp32=int((before == labels).sum()),
                int8=int((after == labels).sum()),
                agreeing=int((before == after).sum()),
            )
        )
    return found


def lines_of(scores: Sequence[Score]) -> list[str]:
    """The scores as a Markdown table."""
    head = ("network", "method", "FP32", "INT8", "loss, points", "same answer")
    lines = [f"| {' | '.join(head)} |", "| --- | --- | --: | --: | --: | --: |"]
    for score in scores:
        fp32, int8 = (f"{100 * right / score.rows:.2f} % ({right})" for right in (score.fp32, score.int8))
        cells = (
            score.network,
            score.method,
            fp32,
            int8,
            f"{score.loss_points:.2f}",
            f"{score.agreeing} of {score.rows}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Prints the table; returns 0."""
    scores: list[Score] = []
    for network in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            scores += measure(network, Path(folder))
    print("\n".join(lines_of(scores)))
    print(f"\n{scores[0].rows} held-out rows; onnxruntime {ort.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
