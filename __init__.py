"""trtfleet: offline inference at cluster scale.

``score`` runs a job, ``status`` reads what an output says of its job, ``calibrate`` finds a model's int8
ranges, ``compare`` compares two networks, ``sweep`` measures models in many settings, ``errors`` has every
exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from .jobs.calibrate import CalibrateSummary
    from .jobs.calibrate_spec import CalibrateSpec
    from .jobs.compare import CompareSummary
    from .jobs.compare_spec import CompareSpec
    from .jobs.dry_run import DryRun
    from .jobs.spec import ScoreSpec
    from .jobs.status import Status
    from .jobs.summary import Summary
    from .jobs.sweep.dry_run import SweepDryRun
    from .jobs.sweep.job import SweepSummary
    from .jobs.sweep.spec import SweepSpec

__version__ = "0.1.0"
__all__ = [
    "CalibrateSpec",
    "CalibrateSummary",
    "CompareSpec",
    "CompareSummary",
    "DryRun",
    "ScoreSpec",
    "Status",
    "Summary",
    "SweepDryRun",
    "SweepSpec",
    "SweepSummary",
    "__version__",
    "calibrate",
    "compare",
    "score",
    "status",
    "sweep",
]

_LAZY = {
    "CalibrateSpec": ".jobs.calibrate_spec",
    "CalibrateSummary": ".jobs.calibrate",
    "CompareSpec": ".jobs.compare_spec",
    "CompareSummary": ".jobs.compare",
    "DryRun": ".jobs.dry_run",
    "ScoreSpec": ".jobs.spec",
    "Status": ".jobs.status",
    "Summary": ".jobs.summary",
    "SweepDryRun": ".jobs.sweep.dry_run",
    "SweepSpec": ".jobs.sweep.spec",
    "SweepSummary": ".jobs.sweep.job",
}


@overload
def score(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    dry_run: Literal[True],
    **options: Any,
) -> DryRun: ...


@overload
def score(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    **options: Any,
) -> Summary: ...


def score(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    dry_run: bool = False,
    **options: Any,
) -> Summary | DryRun:
    """Scores a dataset with an ONNX model on Ray and writes the results as Parquet.

    Args:
        model: ONNX file.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        out: Folder or ``s3://`` prefix for the results; the same call on it resumes an interrupted job.
        dry_run: Only find out what would be done; nothing is run, started or written.
        **options: The other fields of ``ScoreSpec``; plain values as on the command line are understood.

    Returns:
        How much was scored, how fast, and where the time went; of a dry run, the plan.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``.
    """
    from .jobs.spec import ScoreSpec

    spec = ScoreSpec.of({"model": model, "data": data, "out": out, **options})
    if dry_run:
        from .jobs.dry_run_score import dry_run_score

        return dry_run_score(spec)
    from .jobs.score import run_score

    return run_score(spec)


@overload
def calibrate(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    table: str | PathLike[str] | None = None,
    *,
    dry_run: Literal[True],
    **options: Any,
) -> DryRun: ...


@overload
def calibrate(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    table: str | PathLike[str] | None = None,
    **options: Any,
) -> CalibrateSummary: ...


def calibrate(
    model: str | PathLike[str],
    data: str | PathLike[str] | Sequence[str | PathLike[str]],
    table: str | PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    **options: Any,
) -> CalibrateSummary | DryRun:
    """Finds the int8 ranges of a model's activations on a sample of a dataset, and writes them as a table.

    Args:
        model: ONNX file, in single precision.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data.
        table: File for the table; it is kept beside the engine cache in any case.
        dry_run: Only find out what would be done; nothing is run, started or written.
        **options: The other fields of ``CalibrateSpec``; plain values as on the command line are understood.

    Returns:
        Where the table is, and how it came about; of a dry run, the plan.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``.
    """
    from .jobs.calibrate_spec import CalibrateSpec

    spec = CalibrateSpec.of({"model": model, "data": data, "table": table, **options})
    if dry_run:
        from .jobs.dry_run_calibrate import dry_run_calibrate

        return dry_run_calibrate(spec)
    from .jobs.calibrate import run_calibrate

    return run_calibrate(spec)


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


@overload
def sweep(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    dry_run: Literal[False] = False,
    **options: Any,
) -> SweepSummary: ...


@overload
def sweep(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    dry_run: Literal[True],
    **options: Any,
) -> SweepDryRun: ...


def sweep(
    models: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    *,
    dry_run: bool = False,
    **options: Any,
) -> SweepSummary | SweepDryRun:
    """Measures models in every combination of settings, on every kind of device of a Ray cluster.

    Args:
        models: ONNX files.
        out: Folder or ``s3://`` prefix for the results; the same call on it resumes an interrupted sweep.
        dry_run: Only find out what would be measured; nothing is run, started or written.
        **options: The other fields of ``SweepSpec``; plain values as on the command line are understood.

    Returns:
        A row for each trial, also for those that failed; of a dry run, the plan.

    Raises:
        TrtfleetError: One of ``trtfleet.errors``; the sweep as a whole failed.
    """
    from .jobs.sweep.spec import SweepSpec

    spec = SweepSpec.of({"models": models, "out": out, **options})
    if dry_run:
        from .jobs.sweep.dry_run import dry_run_sweep

        return dry_run_sweep(spec)
    from .jobs.sweep.job import run_sweep

    return run_sweep(spec)


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
