"""``calibrate``."""

from __future__ import annotations

from typing import Any

import click

from .int8 import EXCLUDE
from .options import IntOr, as_json_option, option, print_result, results_alone, with_options

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
    option("--actors", type=IntOr("auto"), text="Ray actors; auto takes as many as fit."),
    option("--cpus-per-actor", type=float, metavar="X", text="CPUs of each actor, or a part of one."),
    option("--gpus-per-actor", type=float, metavar="X", text="Below 1, actors share a GPU."),
    option("--backend", type=click.Choice(_BACKENDS), text="What executes the model."),
    option("--input", multiple=True, metavar="NAME=COLUMN", text="Column of a model input, as in `score`."),
    option("--normalize", metavar="imagenet|MEAN:STD", text="As in `score`, like the following."),
    option("--layout", type=click.Choice(["nhwc", "nchw"]), text="How images are stored."),
    option("--resize", metavar="HxW", text="Size that JPEG and PNG images are resized to."),
    option("--preprocess", metavar="MODULE:FUNCTION", text="Hook before the network."),
    option("--columns", multiple=True, metavar="COL", text="Column the preprocess hook gets; all if none."),
    option("--fill-null", type=float, metavar="X", text="Value for nulls; without it they make bad rows."),
    option("--pad-to", type=int, metavar="N", text="Length that ragged rows are padded to."),
    option("--pad-value", type=int, metavar="N", text="What they are padded with."),
    option("--mask", multiple=True, metavar="NAME", text="Model input that gets the attention mask."),
    option(
        "--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default."
    ),
    option("--cache", metavar="URI", text="Engine cache; by default TRTFLEET_CACHE or ~/.cache."),
    option("--report", type=click.Path(), metavar="F.html", text="HTML report; beside the table by default."),
)


@click.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@with_options(_OPTIONS)
@as_json_option
def calibrate(model: str, data: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Find the int8 ranges of MODEL's activations on a sample of DATA (files, globs, folders, s3://).

    The table is the same for any number of actors; `score --precision int8` and `quantize` use it. The same
    command resumes a calibration that was interrupted.
    """
    from ..calibrate import run_calibrate
    from ..calibrate_spec import CalibrateSpec
    from ..progress import reporter_for

    options = {key: value for key, value in flags.items() if value not in (None, ())}
    with results_alone():
        spec = CalibrateSpec.of({"model": model, "data": data, **options})
        summary = run_calibrate(spec, reporter_for(doing="calibrating"))
    print_result(summary, as_json)
