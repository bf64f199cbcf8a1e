"""``build``, ``partition`` and ``inspect``."""

from __future__ import annotations

from typing import Any

import click

from .options import ENGINE_OPTIONS, as_json_option, option, print_result, results_alone, with_options

__all__ = ["build", "inspect", "partition"]

_LEVELS = ("none", "ampere-plus", "same-compute-capability")


def _build_options(flags: dict[str, Any]) -> Any:
    from ...trt_actors.building.options import BuildOptions, Profile

    values = {name: value for name, value in flags.items() if value not in (None, ())}
    values["profiles"] = tuple(map(Profile.parse, values.pop("profile", ())))
    values["exclude_ops"] = values.pop("exclude_op", ())
    return BuildOptions(**values)


@click.command()
@click.argument("model")
@with_options(ENGINE_OPTIONS)
@option(
    "--timing-cache",
    type=click.Path(),
    metavar="F",
    text="File that keeps what builds learn of kernels.",
)
@option(
    "--version-compatible",
    is_flag=True,
    default=None,
    text="Plans load under later minor versions.",
)
@option("--hardware-compatible", type=click.Choice(_LEVELS), text="On which other GPUs plans load.")
@as_json_option
def build(
    model: str,
    table: str | None,
    exclude: tuple[str, ...],
    cache: str | None,
    timing_cache: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Build the TensorRT engines of MODEL (.onnx or a Paddle model) into the engine cache."""
    from ..build import run_build
    from ..progress import BuildProgress

    options = _build_options(flags)
    with results_alone(), BuildProgress() as shown:
        report = run_build(
            model,
            options,
            table=table,
            exclude=exclude,
            cache=cache,
            timing_cache=timing_cache,
            progress=shown.segment,
            say=shown.say,
        )
    print_result(report, as_json)


@click.command()
@click.argument("model")
@with_options(ENGINE_OPTIONS)
@option("--html", type=click.Path(), metavar="F", text="Page with the original and the transformed network.")
@option("--save", type=click.Path(), metavar="F.onnx", text="Transformed network, for Netron.")
@as_json_option
def partition(
    model: str,
    table: str | None,
    exclude: tuple[str, ...],
    html: str | None,
    save: str | None,
    cache: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Show which parts of MODEL TensorRT would run, and why not the others; builds nothing."""
    from ..partition import run_partition

    options = _build_options(flags)
    with results_alone():
        report = run_partition(
            model, options, table=table, exclude=exclude, html=html, save=save, cache=cache
        )
    print_result(report, as_json)


@click.command()
@click.argument("plan")
@option("--cache", metavar="URI", text="Engine cache to look PLAN up in, when it is no file.")
@as_json_option
def inspect(plan: str, cache: str | None, as_json: bool) -> None:
    """Show what a plan file, or a cache entry (its key or the beginning of it), holds."""
    from ..inspect_plan import inspect_plan

    with results_alone():
        report = inspect_plan(plan, cache)
    print_result(report, as_json)
