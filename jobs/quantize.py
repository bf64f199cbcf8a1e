"""``trtfleet quantize``: a model and its calibration table become an INT8 model."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.storage import foreign_errors
from ..errors import CalibrationError, ModelError, OutputError, UsageError
from ..trt_actors.calibration.table import CalibrationTable
from ..trt_actors.model import load_file
from ..trt_actors.quantization.placement import MULTIPLYING
from ..trt_actors.quantization.quantize import quantize_network

__all__ = ["QuantizeReport", "read_table", "run_quantize"]

_MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was quantized.

    Attributes:
        model: The model's path.
        table: The table's path.
        method: How the table's ranges were chosen.
        out: Where the INT8 model is.
        quantized: How many nodes of each operator read int8 values.
        multiplying: How many convolutions and products there are, by operator.
        activations: How many tensors are rounded while the network runs.
        excluded: Nodes that the user keeps in single precision.
        skipped: Why other convolutions and products stay in single precision, by node.
        bytes_before: The network's size in single precision, batch normalization merged.
        bytes_after: Its size with int8 weights.
    """

    model: str
    table: str
    method: str
    out: str
    quantized: Mapping[str, int]
    multiplying: Mapping[str, int]
    activations: int
    excluded: tuple[str, ...]
    skipped: Mapping[str, str]
    bytes_before: int
    bytes_after: int

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "model": self.model,
            "table": self.table,
            "method": self.method,
            "out": self.out,
            "quantized": dict(self.quantized),
            "multiplying": dict(self.multiplying),
            "activations": self.activations,
            "excluded": list(self.excluded),
            "skipped": dict(self.skipped),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }

    def lines(self) -> list[str]:
        """The report in words."""
        counts = [f"{self.quantized.get(op, 0)} of {total} {op}" for op, total in self.multiplying.items()]
        shortcuts = sum(number for op, number in self.quantized.items() if op not in MULTIPLYING)
        lines = [
            f"int8: {', '.join(counts)}; {shortcuts} shortcuts of additions; {self.activations} activations",
            f"ranges: {self.method}, from {self.table}",
        ]
        if self.excluded:
            lines.append(f"excluded: {_shown(self.excluded)}")
        lines += [f"fp32: {name}: {reason}" for name, reason in list(self.skipped.items())[:_MOST_SHOWN]]
        if len(self.skipped) > _MOST_SHOWN:
            lines.append(f"fp32: {len(self.skipped) - _MOST_SHOWN} more nodes")
        lines.append(f"{self.out}: {self.bytes_before:,} bytes -> {self.bytes_after:,} bytes")
        return lines


def run_quantize(model: str, table: str, out: str, exclude: Sequence[str] = ()) -> QuantizeReport:
    """Writes the INT8 model of a model and its calibration table.

    Args:
        model: ONNX file or Paddle model, in single precision.
        table: File that ``trtfleet calibrate`` wrote.
        out: The ONNX file to write; replaced when it is there, complete at any moment.
        exclude: Nodes that stay in single precision: names, operators, or patterns of these.

    Raises:
        TrtfleetError: A file cannot be read or written, the table is of another model, or the model cannot be
            quantized.
    """
    for what, path in (("model", model), ("table", table)):
        if os.path.exists(out) and os.path.exists(path) and os.path.samefile(out, path):
            raise UsageError(f"{out} is the {what} itself", "name another file to write with -o")
    ranges = read_table(table)
    loaded = load_file(model)
    ranges.require_model(loaded.digest, model)
    if loaded.external_folder is not None:
        raise ModelError(
            f"{model}: its weights are too large to be quantized in one ONNX file", "run it in FP16"
        )
    made = quantize_network(loaded.proto, ranges, exclude)
    data = made.model.SerializeToString(deterministic=True)
    _write(out, data)
    present = Counter(node.op_type for node in made.source.graph.node)
    return QuantizeReport(
        model=model,
        table=table,
        method=ranges.method,
        out=out,
        quantized=made.placement.nodes,
        multiplying={op: present[op] for op in MULTIPLYING if present[op]},
        activations=len(made.placement.activations),
        excluded=made.placement.excluded,
        skipped=made.placement.skipped,
        bytes_before=made.source.ByteSize(),
        bytes_after=len(data),
    )


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MOST_SHOWN
    return ", ".join(names[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def read_table(path: str) -> CalibrationTable:
    """Reads the table that ``--table`` names.

    Raises:
        CalibrationError: It cannot be read, or is no table.
    """
    with (
        foreign_errors(CalibrationError, f"{path} cannot be read", "check the path of --table"),
        open(path, "rb") as file,
    ):
        data = file.read()
    return CalibrationTable.decode(data, path)


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with foreign_errors(OutputError, f"{path} cannot be written", "check the path of -o"):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise
