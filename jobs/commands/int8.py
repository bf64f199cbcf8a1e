"""The commands that make INT8 models."""

from __future__ import annotations

import click

from .options import as_json_option, option, print_result, results_alone

__all__ = ["quantize"]

EXCLUDE = option(
    "--exclude",
    multiple=True,
    metavar="NODE|OP",
    text="Node, operator or pattern of these that stays in FP32; repeatable.",
)
"""The option of every command that decides where quantizers go."""


@click.command()
@click.argument("model")
@option("--table", required=True, type=click.Path(), metavar="T.json", text="Table that `calibrate` wrote.")
@option("-o", "--out", required=True, type=click.Path(), metavar="F.onnx", text="INT8 model to write.")
@EXCLUDE
@as_json_option
def quantize(model: str, table: str, out: str, exclude: tuple[str, ...], as_json: bool) -> None:
    """Write MODEL (.onnx or a Paddle model, in FP32) as an ONNX file with int8 weights and quantizers.

    TensorRT and ONNX Runtime run it with `--precision int8`.
    """
    from ..quantize import run_quantize

    with results_alone():
        report = run_quantize(model, table, out, exclude)
    print_result(report, as_json)
