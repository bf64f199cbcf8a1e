"""trtfleet: offline inference at cluster scale.

``score`` runs a job, ``status`` reads what an output says of its job, ``calibrate`` finds a model's int8
ranges, ``compare`` compares two networks, ``errors`` has every exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs.calibrate import CalibrateSummary
    from .jobs.calibrate_spec import CalibrateSpec
    from .jobs.compare import CompareSummary
    from .jobs.compare_spec import CompareSpec
    from .jobs.spec import ScoreSpec
    from .jobs.status import Status
    from .jobs.summary import Summary

__version__ = "0.1.0"
__all__ = [
    "CalibrateSpec",
    "CalibrateSummary",
    "CompareSpec",
    "CompareSummary",
    "ScoreSpec",
    "Status",
    "Summary",
    "__version__",
    "calibrate",
    "compare",
    "score",
    "status",
]

_LAZY = {
    "CalibrateSpec": ".jobs.calibrate_spec",
    "CalibrateSummary": ".jobs.calibrate",
    "CompareSpec": ".jobs.compare_spec",
    "CompareSummary": ".jobs.compare",
    "ScoreSpec": ".jobs.spec",
    "Status": ".jobs.status",
    "Summary": ".jobs.summary",
}


def score(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    **options: Any,
) -> Summary:
    """Scores a dataset with an ONNX model on Ray and writes the results as Parquet.

    Args:
        model: ONNX file.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        out: Folder or ``s3://`` prefix for the results; the same call on it resumes an interrupted job.
        **options: The other fields of ``ScoreSpec``; plain values as on the command line are understood.

    Returns:
        How much was scored, how fast, and where the time went.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``.
    """
    from .jobs.score import run_score
    from .jobs.spec import ScoreSpec

    return run_score(ScoreSpec.of({"model": model, "data": data, "out": out, **options}))


def calibrate(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    table: str | PathLike[str] | None = None,
    **options: Any,
) -> CalibrateSummary:
    """Finds the int8 ranges of a model's activations on a sample of a dataset, and writes them as a table.

    Args:
        model: ONNX file, in single precision.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        table: File for the table; it is kept beside the engine cache in any case.
        **options: The other fields of ``CalibrateSpec``; plain values as on the command line are understood.

    Returns:
        Where the table is, and how it came about.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``.
    """
    from .jobs.calibrate import run_calibrate
    from .jobs.calibrate_spec import CalibrateSpec

    return run_calibrate(CalibrateSpec.of({"model": model, "data": data, "table": table, **options}))


def compare(
    model_a: str | PathLike[str],
    model_b: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    **options: Any,
) -> CompareSummary:
    """Compares the answers of two models, or of one in two precisions, on a dataset.

    Args:
        model_a: ONNX file: what is right.
        model_b: What is compared with it; the same file with ``precision_b``.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        **options: The other fields of ``CompareSpec``; plain values as on the command line are understood.

    Returns:
        How far they are apart, whatever ``max_drop`` is: ``CompareSummary.require`` holds it against that.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``.
    """
    from .jobs.compare import run_compare
    from .jobs.compare_spec import CompareSpec

    return run_compare(CompareSpec.of({"model_a": model_a, "model_b": model_b, "data": data, **options}))


def status(out: str | PathLike[str]) -> Status:
    """Reads the state of an output from storage alone.

    Raises:
        OutputError: There is no output of trtfleet, or it cannot be read.
    """
    from .jobs.status import read_status

    return read_status(str(out))


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
