"""``calibrate``."""

from __future__ import annotations

from typing import Any

import click

from .int8 import EXCLUDE
from .options import (
    DRY_RUN,
    LOG_FORMAT,
    as_json_option,
    option,
    print_result,
    reported,
    results_alone,
    sample_options,
    with_options,
)

__all__ = ["calibrate"]

_BACKENDS = ("auto", "onnxruntime-cpu", "onnxruntime-cuda")

_OPTIONS = (
    option(
        "-o",
        "--table",
        type=click.Path(),
        metavar="T.json",
        text="Table to write; the cache gets one anyway.",
    ),
    option("--samples", type=int, metavar="N", text="Rows drawn from the whole dataset; 500 by default."),
    option(
        "--method",
        metavar="entropy|percentile:P|minmax|mse",
        text="How thresholds are chosen; entropy by default.",
    ),
    option("--seed", type=int, metavar="N", text="Of the drawing; 0 by default."),
    option("--batch-size", type=int, metavar="N", text="Rows a batch; 32, or what the model insists on."),
    EXCLUDE,
    *sample_options(
        _BACKENDS,
        backend="What executes the model.",
        column="Column of a model input, as in `score`.",
        hook="Hook before the network.",
    ),
    option("--report", type=click.Path(), metavar="F.html", text="HTML report; beside the table by default."),
    LOG_FORMAT,
)


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@with_options(_OPTIONS)
@DRY_RUN
@as_json_option
def calibrate(model: str, data: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Find the int8 ranges of MODEL's activations on a sample of DATA (files, globs, folders, s3://).

    The table is the same for any number of actors; `score --precision int8` and `quantize` use it. The same
    command resumes a calibration that was interrupted.
    """
    from ..calibrate import run_calibrate
    from ..calibrate_spec import CalibrateSpec
    from ..dry_run_calibrate import dry_run_calibrate

    options = {key: value for key, value in flags.items() if value not in (None, ())}
    with results_alone(), reported(flags["log_format"], "calibrating") as shown:
        spec = CalibrateSpec.of({"model": model, "data": data, **options})
        found: Any = dry_run_calibrate(spec) if dry_run else run_calibrate(spec, shown)
    print_result(found, as_json)
