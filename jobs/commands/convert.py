"""``convert``."""

from __future__ import annotations

from typing import Any

import click

from .options import as_json_option, option, print_result, results_alone

__all__ = ["convert"]

_CODECS = ("none", "lz4", "snappy", "zstd")


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.argument("out")
@option("--column", multiple=True, metavar="COL", text="Column to convert; by default all that can be.")
@option("--resize", metavar="HxW", text="Decode JPEG, PNG, WebP and BMP images to this size.")
@option("--channels", type=int, metavar="N", text="Of decoded images: 1 grey, 3 RGB (default), 4 RGBA.")
@option("--compression", type=click.Choice(_CODECS), text="Codec of converted columns; none by default.")
@option("--threads", type=int, metavar="N", text="Threads that decode; by default one for each CPU.")
@option("--overwrite", is_flag=True, default=None, text="Make files anew that are there.")
@as_json_option
def convert(data: tuple[str, ...], out: str, resize: str | None, as_json: bool, **flags: Any) -> None:
    """Rewrite DATA (files, globs, folders, s3://) to OUT with its tensors in the layout that is read fastest.

    Lists and tensors of numbers become FixedSizeBinary, with --resize encoded images too. The same command
    goes on where it was interrupted.
    """
    from ..coerce import coerce
    from ..convert import ConvertSpec, run_convert

    values = {name: value for name, value in flags.items() if value not in (None, ())}
    size = None if resize is None else coerce("resize", resize)
    spec = ConvertSpec(data=data, out=out, resize=size, **values)
    with results_alone():
        summary = run_convert(spec, lambda text: click.echo(text, err=True))
    print_result(summary, as_json)
