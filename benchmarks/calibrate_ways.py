"""Ways to find the int8 ranges of a network on the same rows: trtfleet's and ONNX Runtime's own calibrators.

Each runs in a process of its own, or in several, and brings the largest one's peak memory along.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pyarrow.parquet as pq
from gpu_isolate import run_apart
from gpu_peers import start_ray
from onnxruntime.quantization.calibrate import (
    CalibraterBase,
    CalibrationDataReader,
    CalibrationMethod,
    EntropyCalibrater,
    create_calibrator,
)
from peers import cores
from trtfleet.datasets.sampling import plan_units, suggest_unit_batches
from trtfleet.jobs.calibrate_plan import CalibratePlan, make_calibrate_plan
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.trt_actors.calibration.calibrator import Calibrator
from trtfleet.trt_actors.calibration.statistics import decode, merge_all
from trtfleet.trt_actors.calibration.thresholds import Method, threshold

__all__ = ["CalibrationCase", "actors_alone", "job", "onnx_runtime", "same_tensors", "whole_command"]

NORMALIZE = "imagenet"
OPERATORS = ("Conv", "Gemm", "MatMul")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_COMMAND = "import sys; from trtfleet.jobs.cli import main; sys.exit(main())"

Found = Iterator[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class CalibrationCase:
    """What is calibrated, on what.

    Attributes:
        model: ONNX file, float32.
        files: Parquet files with ``image``, FixedSizeBinary; all their rows are used.
        rows: How many these are.
        batch_rows: Rows a batch.
        device: Where the network executes.
        chunk_bytes: About how many bytes of activations ONNX Runtime's calibrators may keep before they make
            histograms of them.
    """

    model: Path
    files: tuple[Path, ...]
    rows: int
    batch_rows: int
    device: Literal["cpu", "cuda"]
    chunk_bytes: int

    def spec(self, **options: Any) -> CalibrateSpec:
        """The calibration as trtfleet is told it."""
        return CalibrateSpec.of({"data": [str(path) for path in self.files], **self._options(), **options})

    def arguments(self) -> list[str]:
        """The same on the command line."""
        options = [f"--{name.replace('_', '-')}={value}" for name, value in self._options().items()]
        model = options.pop(0).partition("=")[2]
        return ["calibrate", model, *map(str, self.files), *options]

    def _options(self) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "samples": self.rows,
            "batch_size": self.batch_rows,
            "normalize": NORMALIZE,
            "backend": f"onnxruntime-{self.device}",
        }


def whole_command(case: CalibrationCase) -> Found:
    """``trtfleet calibrate`` as a user runs it: imports, Ray's start and end, actors, everything counted."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*case.arguments(), f"--cache={folder}/cache", "--json"]
        start_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, *arguments], capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start_s
    if done.returncode:
        raise RuntimeError(done.stderr[-400:])
    found = json.loads(done.stdout)
    yield _answer(seconds, found["tensors"], found["rows"], actors=found["actors"])


def job(case: CalibrationCase) -> Found:
    """The same job on a Ray that runs already: planning, the actors' start, storing the table are counted."""
    import trtfleet

    with tempfile.TemporaryDirectory() as folder, start_ray(case.device):
        # Ray has spare logical CPUs here, which are no cores.
        spec = case.spec(cache=f"{folder}/cache", actors=_actors(case))
        options = {name: value for name, value in vars(spec).items() if value is not None}
        model, data = options.pop("model"), options.pop("data")
        start_s = time.perf_counter()
        summary = trtfleet.calibrate(model, data, **options)
        seconds = time.perf_counter() - start_s
    yield _answer(seconds, summary.tensors, summary.rows, actors=summary.actors)


def actors_alone(case: CalibrationCase, limit_s: float) -> dict[str, Any]:
    """What as many actors as there are cores, or one on a GPU, do once they are there; without Ray.

    Merging what they counted and choosing the thresholds is included. The clock runs when all are ready.
    """
    actors = _actors(case)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(actors) as pool:
        waiting = [
            pool.submit(list, run_apart(_actor, case, number, actors, folder, limit_s=limit_s))
            for number in range(actors)
        ]
        found = [run for each in waiting for run in each.result()]
    first_s, last_s = min(run["start_s"] for run in found), max(run["end_s"] for run in found)
    start_s = time.perf_counter()
    statistics = merge_all(decode(part) for run in found for part in run["statistics"])
    thresholds = {name: threshold(each, Method.parse("entropy")) for name, each in statistics.items()}
    seconds = last_s - first_s + time.perf_counter() - start_s
    rows, peak = sum(run["rows"] for run in found), max(run["peak_bytes"] for run in found)
    return {**_answer(seconds, len(thresholds), rows), "peak_bytes": peak}


def _actor(case: CalibrationCase, number: int, actors: int, folder: str) -> Found:
    """One of them: every ``actors``-th unit.

    Its first unit runs once before the clock: on a device that allocates memory and chooses kernels.
    """
    plan = _plan(case, folder)
    batches = suggest_unit_batches(case.rows, case.batch_rows, actors)
    units = plan_units(plan.dataset.files, plan.rows, batch_size=case.batch_rows, unit_batches=batches)
    with Calibrator(plan.task(1)) as calibrator:
        calibrator.observe(units[0])
        Path(folder, f"{number}.ready").touch()
        while len(list(Path(folder).glob("*.ready"))) < actors:
            time.sleep(0.001)
        start_s = time.perf_counter()
        receipts = [calibrator.observe(unit) for unit in units[number::actors]]
        end_s = time.perf_counter()
    found = _answer(end_s - start_s, 0, sum(receipt.rows for receipt in receipts))
    # This clock counts from the machine's start, in all processes alike.
    yield {
        **found,
        "start_s": start_s,
        "end_s": end_s,
        "statistics": [receipt.statistics for receipt in receipts],
    }


def onnx_runtime(case: CalibrationCase, method: str) -> Found:
    """One of ONNX Runtime's calibrators with its defaults, on what convolutions and products read and make.

    Args:
        case: What to calibrate.
        method: ``Entropy``, ``Percentile`` or ``MinMax``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(_plan(case, folder).fitted.network.model_bytes)
        start_s = time.perf_counter()
        calibrator = create_calibrator(
            path,
            OPERATORS,
            str(Path(folder) / "augmented.onnx"),
            CalibrationMethod[method],
            providers=[_PROVIDERS[case.device]],
        )
        yield _collected(case, calibrator, start_s)


class _Chosen(EntropyCalibrater):
    """The entropy calibrator on a network whose outputs are the tensors to calibrate."""

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
        found = {value.name: value for value in model.graph.output}
        return set(found), found


def same_tensors(case: CalibrationCase) -> Found:
    """ONNX Runtime's entropy calibrator on exactly the tensors that trtfleet observes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        path.write_bytes(_plan(case, folder).observed.network.model_bytes)
        start_s = time.perf_counter()
        calibrator = _Chosen(path, OPERATORS, str(Path(folder) / "augmented.onnx"))
        calibrator.augment_graph()
        calibrator.execution_providers = [_PROVIDERS[case.device]]
        calibrator.create_inference_session()
        yield _collected(case, calibrator, start_s)


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Feeds some batches."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _actors(case: CalibrationCase) -> int:
    return 1 if case.device == "cuda" else cores()


def _plan(case: CalibrationCase, folder: str) -> CalibratePlan:
    return make_calibrate_plan(case.spec(cache=f"{folder}/cache"))


def _collected(case: CalibrationCase, calibrator: CalibraterBase, start_s: float) -> dict[str, Any]:
    """Runs all rows in chunks, as its documentation advises for more than fits into memory."""
    ready_s = time.perf_counter()
    provider = calibrator.infer_session.get_providers()[0]
    if provider != _PROVIDERS[case.device]:
        raise RuntimeError(f"the session runs on {provider}")
    rows = 0
    # It tells of every step on the standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        for chunk in _chunks(case, calibrator):
            calibrator.collect_data(_Rows(chunk))
            rows += sum(map(len, chunk))
        ranges = calibrator.compute_data()
    end_s = time.perf_counter()
    return _answer(end_s - start_s, len(ranges.data), rows, seconds_ready=end_s - ready_s)


def _chunks(case: CalibrationCase, calibrator: CalibraterBase) -> Iterator[list[np.ndarray]]:
    """Lists of batches whose activations together take about ``chunk_bytes``.

    A smaller batch, the last one, comes alone: the calibrators stack the batches of a call.
    """
    chunk: list[np.ndarray] = []
    room = 0
    for batch in _batches(case):
        if not room:
            one = calibrator.infer_session.run(None, {"image": batch[:1]})
            row_bytes = sum(values.nbytes for values in one)
            room = max(1, case.chunk_bytes // (row_bytes * case.batch_rows))
        if chunk and (len(chunk) == room or len(batch) != len(chunk[0])):
            yield chunk
            chunk = []
        chunk.append(batch)
    yield chunk


def _batches(case: CalibrationCase) -> Iterator[np.ndarray]:
    for path in case.files:
        with pq.ParquetFile(path) as file:
            field = file.schema_arrow.field("image")
            shape = [int(size) for size in field.metadata[b"trtfleet.shape"].split(b",")]
            for block in file.iter_batches(case.batch_rows, columns=["image"]):
                column = block.column(0)
                width = column.type.byte_width
                raw = np.frombuffer(column.buffers()[1], np.uint8)
                start = column.offset * width
                yield raw[start : start + len(column) * width].reshape(-1, *shape)


def _answer(seconds: float, tensors: int, rows: int, **more: Any) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "tensors": tensors, "rows": rows, "peak_bytes": peak, **more}
