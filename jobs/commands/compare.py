"""``compare``."""

from __future__ import annotations

from typing import Any

import click

from .int8 import EXCLUDE
from .options import (
    LOG_FORMAT,
    IntOr,
    as_json_option,
    option,
    print_result,
    reported,
    results_alone,
    sample_options,
    with_options,
)

__all__ = ["compare"]

_BACKENDS = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")

_OPTIONS = (
    option("--precision-b", type=click.Choice(["fp32", "fp16", "int8"]), text="What MODEL_B computes in."),
    option(
        "--table",
        type=click.Path(),
        metavar="T.json",
        text="Calibration table for int8; by default the one kept beside the engine cache.",
    ),
    EXCLUDE,
    option("--samples", type=IntOr("all"), text="Rows drawn from the whole dataset; all by default."),
    option("--seed", type=int, metavar="N", text="Of the drawing; by default not the table's."),
    option("--batch-size", type=int, metavar="N", text="Rows a batch; 32, or what MODEL_A insists on."),
    option("--keep", multiple=True, metavar="COL", text="Column that tells the worst rows; repeatable."),
    option("--worst", type=int, metavar="N", text="Worst rows to show; 20 by default."),
    option("--per-layer", is_flag=True, text="Compare inner tensors: where do the networks part?"),
    option("--suggest-exclude", is_flag=True, text="Look for few nodes not to quantize so that it passes."),
    option(
        "--max-drop",
        type=float,
        metavar="X",
        text="Exit with 17 beyond: rows with another answer, or the relative error.",
    ),
    *sample_options(
        _BACKENDS,
        backend="What executes both models.",
        column="Column of an input of MODEL_A.",
        hook="Hook before the networks.",
    ),
    option("--report", type=click.Path(), metavar="F.html", text="HTML report to write."),
    LOG_FORMAT,
)


@click.command()
@click.argument("model_a")
@click.argument("model_b")
@click.argument("data", nargs=-1, required=True)
@with_options(_OPTIONS)
@as_json_option
def compare(model_a: str, model_b: str, data: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Compare the answers of MODEL_A and MODEL_B on DATA (files, globs, folders, s3://).

    Both may be the same file, MODEL_B in another precision. The result is the same for any number of actors,
    and the same command resumes a comparison that was interrupted.
    """
    from ..compare import run_compare
    from ..compare_spec import CompareSpec

    # By identity: --max-drop 0 is something else than no limit.
    options = {key: value for key, value in flags.items() if value is not None and value != ()}
    with reported(flags["log_format"], "comparing") as shown:
        with results_alone():
            spec = CompareSpec.of({"model_a": model_a, "model_b": model_b, "data": data, **options})
            summary = run_compare(spec, shown)
        print_result(summary, as_json)
        summary.require()
