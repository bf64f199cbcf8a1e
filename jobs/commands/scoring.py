"""``score``, ``status`` and ``demo``."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import (
    BATCH_TIMEOUT,
    DRY_RUN,
    ENGINE_OPTIONS,
    LOG_FORMAT,
    IntOr,
    as_json_option,
    exit_code_alone,
    option,
    print_result,
    results_alone,
    with_options,
)

__all__ = ["demo", "score", "status"]

_COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "none")
_ON_DROP = ("refuse", "warn", "ignore")
_BACKENDS = ("auto", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt")

_SCORE_OPTIONS = (
    option(
        "--input",
        multiple=True,
        metavar="NAME=COLUMN",
        text="Column of a model input; NAME=A,B,C stacks columns. Guessed when unambiguous.",
    ),
    option("--keep", multiple=True, metavar="COL", text="Column carried into the output."),
    option("--batch-size", type=IntOr("auto"), text="Rows a batch; auto measures."),
    option("--actors", type=IntOr("auto"), text="Ray actors; auto takes as many as fit, also later."),
    option("--cpus-per-actor", type=IntOr("auto"), text="CPUs and engine threads of each actor."),
    option("--gpus-per-actor", type=float, metavar="X", text="Below 1, actors share a GPU."),
    option("--memory-per-actor", type=int, metavar="BYTES", text="Beyond that, an actor is replaced."),
    BATCH_TIMEOUT,
    option(
        "--wait-for-nodes",
        type=float,
        metavar="SECONDS",
        text="How long to wait for a node that fits an actor where there is none.",
    ),
    option("--backend", type=click.Choice(_BACKENDS), text="What executes the model."),
    option(
        "--normalize",
        metavar="imagenet|MEAN:STD",
        text="Done inside the network, in units of the stored values.",
    ),
    option(
        "--layout",
        type=click.Choice(["nhwc", "nchw"]),
        text="How images are stored, where the column's type does not tell.",
    ),
    option(
        "--image-decoder",
        type=click.Choice(["auto", "cpu", "gpu"]),
        text="Where JPEG is decoded; auto takes the GPU that scores if it can.",
    ),
    option("--resize", metavar="HxW", text="Size that JPEG and PNG images are resized to."),
    option("--emit", metavar="raw|softmax|argmax|topk:K", text="What to write of each output."),
    option("--output", multiple=True, metavar="NAME", text="Model output to write; all by default."),
    option("--preprocess", metavar="MODULE:FUNCTION", text="Hook before the network."),
    option("--postprocess", metavar="MODULE:FUNCTION", text="Hook after the network."),
    option("--columns", multiple=True, metavar="COL", text="Column the preprocess hook gets; all if none."),
    option("--filter", metavar="EXPR", text='Rows to score: label == 3 and split in ("a", "b").'),
    option("--fill-null", type=float, metavar="X", text="Value for nulls; without it they make bad rows."),
    option("--pad-to", type=int, metavar="N", text="Length that ragged rows are padded to."),
    option("--pad-value", type=int, metavar="N", text="What they are padded with."),
    option("--mask", multiple=True, metavar="NAME", text="Model input that gets the attention mask."),
    option("--shard-bytes", type=IntOr("auto"), text="Uncompressed bytes of a shard."),
    option("--max-bad-rows", type=IntOr("unlimited"), text="Bad rows tolerated; 0 by default."),
    option("--compression", type=click.Choice(_COMPRESSIONS), text="Parquet codec of the output."),
    option(
        "--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default."
    ),
    option("--overwrite", is_flag=True, default=None, text="Replace an output of another job."),
    *ENGINE_OPTIONS,
    option(
        "--use-static/--no-use-static",
        default=None,
        text="Keep TensorRT engines in the cache and take them from there, as by default.",
    ),
    option(
        "--use-calib-mode",
        is_flag=True,
        default=None,
        text="Make a calibration table that is not there first, with the defaults of `calibrate`.",
    ),
    option(
        "--max-drop",
        type=float,
        metavar="X",
        text="Share of a sample's rows that int8 may answer differently than fp32; 0.01 by default.",
    ),
    option("--on-drop", type=click.Choice(_ON_DROP), text="What happens beyond that; refuse by default."),
    option("--trace", type=click.Path(), metavar="FILE", text="Trace of one actor, for Perfetto or Chrome."),
    LOG_FORMAT,
    option("--report/--no-report", default=None, text="Write report.html of the run, as by default."),
)


@click.command()
@click.argument("model", required=False)
@click.argument("data", nargs=-1)
@click.argument("out", required=False)
@with_options(_SCORE_OPTIONS)
@click.option("--spec", type=click.Path(), metavar="FILE", help="YAML with these options; flags win.")
@DRY_RUN
@as_json_option
def score(spec: str | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Score DATA (files, globs, folders, s3://) with MODEL (.onnx) and write Parquet to OUT.

    The same command resumes a job that was interrupted; on a finished output it does nothing.
    """
    from ..dry_run_score import dry_run_score
    from ..progress import JsonLines, reporter_for
    from ..score import run_score
    from ..spec import ScoreSpec, load_spec

    options = load_spec(spec) if spec else {}
    options = {key.replace("-", "_"): value for key, value in options.items()}
    options.update({key: value for key, value in flags.items() if value not in (None, ())})
    with results_alone():
        asked = ScoreSpec.of(options)
        if dry_run:
            found: Any = dry_run_score(asked)
        elif asked.log_format == "json":
            with exit_code_alone():
                found = run_score(asked, JsonLines())
        else:
            found = run_score(asked, reporter_for())
    print_result(found, as_json)


@click.command()
@click.argument("out")
@as_json_option
def status(out: str, as_json: bool) -> None:
    """Show how far the job that writes to OUT is, what failed, and its bad rows; needs no cluster."""
    from ..status import read_status

    print_result(read_status(out), as_json)


@click.command()
@click.option("--out", type=click.Path(), help="Where results go; a temporary folder by default.")
@as_json_option
def demo(out: str | None, as_json: bool) -> None:
    """Score 1,797 handwritten digits on two actors and check the answers."""
    from ..demo import run_demo
    from ..progress import reporter_for

    with results_alone():
        result = run_demo(out, reporter_for())
    if as_json:
        values = {"held_out_rows": result.held_out_rows, "held_out_accuracy": result.held_out_accuracy}
        click.echo(json.dumps({**values, "summary": result.summary.as_json()}, indent=1))
        return
    click.echo(f"held-out accuracy {result.held_out_accuracy:.2%} on {result.held_out_rows} digits")
    print_result(result.summary, as_json)
