"""``sweep``."""

from __future__ import annotations

from typing import Any

import click

from .options import (
    DRY_RUN,
    LOG_FORMAT,
    as_json_option,
    option,
    print_result,
    reported,
    results_alone,
    with_options,
)

__all__ = ["sweep"]

_BACKENDS = ("auto", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "torch")

_OPTIONS = (
    option("-o", "--out", required=True, metavar="OUT", text="Folder or s3:// prefix for the results."),
    option("--batch-sizes", metavar="N,N,...", text="Rows a batch; 1,8,32 by default."),
    option("--precisions", metavar="P,P,...", text="fp32 (default), fp16, int8."),
    option(
        "--backends", metavar="B,B,...", text="auto (default), tensorrt, onnxruntime-cuda or -cpu, torch."
    ),
    option("--contexts", metavar="N,N,...", text="Engines in a process, each with a thread; 1 by default."),
    option("--actors", metavar="N,N,...", text="Processes at once, each with a device; 1 by default."),
    option(
        "--mode",
        type=click.Choice(["both", "latency", "throughput"]),
        text="What is measured; both by default.",
    ),
    option("--repeats", type=int, metavar="N", text="How often each trial is measured; 3 by default."),
    option("--runs", type=int, metavar="N", text="Least batches that count; 50 by default."),
    option("--seconds", type=float, metavar="X", text="Least seconds of measuring; 1 by default."),
    option(
        "--warm-up", "warm_up_s", type=float, metavar="X", text="Most seconds of warming up; 10 by default."
    ),
    option(
        "--timeout", "timeout_s", type=float, metavar="X", text="Most seconds of a trial; 1800 by default."
    ),
    option("--cpus-per-actor", type=int, metavar="N", text="CPU threads of each actor."),
    option(
        "--profile",
        multiple=True,
        metavar="NAME=MIN,OPT,MAX",
        text="Shapes of an input with free dimensions, e.g. ids=1x16,8x64,32x256; OPT is run.",
    ),
    option(
        "--data",
        multiple=True,
        metavar="DATA",
        text="Dataset to measure throughput on, as `score` would; synthetic batches without.",
    ),
    option("--input", multiple=True, metavar="NAME=COLUMN", text="As in `score`, like the following."),
    option("--normalize", metavar="imagenet|MEAN:STD", text="Done inside the network."),
    option("--layout", type=click.Choice(["nhwc", "nchw"]), text="How images are stored."),
    option("--resize", metavar="HxW", text="Size that JPEG and PNG images are resized to."),
    option("--emit", metavar="raw|softmax|argmax|topk:K", text="What is written of each output."),
    option("--preprocess", metavar="MODULE:FUNCTION", text="Hook before the network."),
    option("--columns", multiple=True, metavar="COL", text="Column the preprocess hook gets."),
    option("--fill-null", type=float, metavar="X", text="Value for nulls."),
    option("--pad-to", type=int, metavar="N", text="Length that ragged rows are padded to."),
    option("--pad-value", type=int, metavar="N", text="What they are padded with."),
    option("--mask", multiple=True, metavar="NAME", text="Model input that gets the attention mask."),
    option(
        "--torch",
        multiple=True,
        metavar="[MODEL=]MODULE:FUNCTION",
        text="Makes the torch.nn.Module that backend torch runs in a model's place.",
    ),
    option("--baseline", type=click.Choice(_BACKENDS), text="Backend that others are held against."),
    option("--compare", metavar="OLD_OUT", text="Earlier sweep; shows what changed by more than its noise."),
    option(
        "--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default."
    ),
    option("--cache", metavar="URI", text="Engine cache; by default TRTFLEET_CACHE or ~/.cache."),
    option("--overwrite", is_flag=True, default=None, text="Start afresh where OUT holds a sweep."),
    LOG_FORMAT,
)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@with_options(_OPTIONS)
@DRY_RUN
@as_json_option
def sweep(models: tuple[str, ...], dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Measure MODELs (.onnx) in every combination of settings, on every kind of device of the cluster.

    A trial that fails is a row with its error. The same command resumes a sweep that was interrupted.
    """
    from ..sweep.dry_run import dry_run_sweep
    from ..sweep.job import run_sweep
    from ..sweep.spec import SweepSpec

    options = {key: value for key, value in flags.items() if value not in (None, ())}
    with results_alone(), reported(flags["log_format"], "sweeping") as shown:
        spec = SweepSpec.of({"models": models, **options})
        result = dry_run_sweep(spec) if dry_run else run_sweep(spec, shown)
    print_result(result, as_json)
