"""The command line. Exit codes are those of ``trtfleet.errors``; results go to stdout, the rest to stderr."""

from __future__ import annotations

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from .. import __version__
from ..errors import InternalError, TrtfleetError

__all__ = ["main"]

_INTERRUPTED = 130
_COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "none")
_BACKENDS = ("auto", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt")


def main() -> NoReturn:
    """Runs the command line and exits with a documented code; no traceback reaches the user."""
    try:
        cli.main(standalone_mode=False)
        code = 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; the same command resumes the job", err=True)
        code = _INTERRUPTED
    except TrtfleetError as error:
        code = _show(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("TRTFLEET_DEBUG"):
            traceback.print_exc()
        fact = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        code = _show(InternalError(fact, "run again with TRTFLEET_DEBUG=1 and report the traceback"))
    sys.exit(code)


def _show(error: TrtfleetError) -> int:
    click.echo(f"error: {error.fact}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="trtfleet")
def cli() -> None:
    """Offline inference at cluster scale: score Parquet and Arrow datasets, every row exactly once."""


class _IntOr(click.ParamType):
    """A whole number, or one word that stands for None."""

    def __init__(self, word: str) -> None:
        self.name = f"integer|{word}"
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the option; the word stays, for the spec to understand."""
        if isinstance(value, int) or value == self._word:
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor {self._word!r}", param, ctx)


_OPTIONS = [
    click.option("--input", multiple=True, metavar="NAME=COLUMN", help="Column of a model input; NAME=A,B,C stacks columns. Guessed when unambiguous."),
    click.option("--keep", multiple=True, metavar="COL", help="Column carried into the output."),
    click.option("--batch-size", type=_IntOr("auto"), help="Rows a batch; auto measures."),
    click.option("--actors", type=_IntOr("auto"), help="Ray actors; auto takes as many as fit."),
    click.option("--cpus-per-actor", type=int, metavar="N", help="CPUs and engine threads of each actor."),
    click.option("--backend", type=click.Choice(_BACKENDS), help="What executes the model."),
    click.option("--normalize", metavar="imagenet|MEAN:STD", help="Done inside the network, in units of the stored values."),
    click.option("--layout", type=click.Choice(["nhwc", "nchw"]), help="How images are stored, where the column's type does not tell."),
    click.option("--resize", metavar="HxW", help="Size that JPEG and PNG images are resized to."),
    click.option("--emit", metavar="raw|softmax|argmax|topk:K", help="What to write of each output."),
    click.option("--output", multiple=True, metavar="NAME", help="Model output to write; all by default."),
    click.option("--preprocess", metavar="MODULE:FUNCTION", help="Hook before the network."),
    click.option("--postprocess", metavar="MODULE:FUNCTION", help="Hook after the network."),
    click.option("--columns", multiple=True, metavar="COL", help="Column the preprocess hook gets; all by default."),
    click.option("--filter", metavar="EXPR", help='Rows to score, for example: label == 3 and split in ("a", "b").'),
    click.option("--fill-null", type=float, metavar="X", help="Value for nulls; without it they make bad rows."),
    click.option("--pad-to", type=int, metavar="N", help="Length that ragged rows are padded to."),
    click.option("--pad-value", type=int, metavar="N", help="What they are padded with."),
    click.option("--mask", multiple=True, metavar="NAME", help="Model input that gets the attention mask."),
    click.option("--shard-bytes", type=_IntOr("auto"), help="Uncompressed bytes of a shard."),
    click.option("--max-bad-rows", type=_IntOr("unlimited"), help="Bad rows tolerated; 0 by default."),
    click.option("--compression", type=click.Choice(_COMPRESSIONS), help="Parquet codec of the output."),
    click.option("--address", metavar="ADDRESS", help="Ray cluster; RAY_ADDRESS or Ray on this machine by default."),
    click.option("--overwrite", is_flag=True, default=None, help="Replace an output of another job."),
]  # fmt: skip


def _score_options(command: Callable[..., None]) -> Callable[..., None]:
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(_OPTIONS), command)


@cli.command()
@click.argument("model", required=False)
@click.argument("data", nargs=-1)
@click.argument("out", required=False)
@_score_options
@click.option("--spec", type=click.Path(), metavar="FILE", help="YAML with these options; flags win.")
@click.option("--json", "as_json", is_flag=True, help="Summary as JSON on stdout.")
def score(spec: str | None, as_json: bool, **flags: Any) -> None:
    """Score DATA (files, globs, folders, s3://) with MODEL (.onnx) and write Parquet to OUT.

    The same command resumes a job that was interrupted; on a finished output it does nothing.
    """
    from .progress import reporter_for
    from .score import run_score
    from .spec import ScoreSpec, load_spec

    options = load_spec(spec) if spec else {}
    options = {key.replace("-", "_"): value for key, value in options.items()}
    options.update({key: value for key, value in flags.items() if value not in (None, ())})
    summary = run_score(ScoreSpec.of(options), reporter_for())
    _print(summary, as_json)


@cli.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Status as JSON on stdout.")
def status(out: str, as_json: bool) -> None:
    """Show how far the job that writes to OUT is, what failed, and its bad rows; needs no cluster."""
    from .status import read_status

    _print(read_status(out), as_json)


@cli.command()
@click.option("--out", type=click.Path(), help="Where results go; a temporary folder by default.")
@click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
def demo(out: str | None, as_json: bool) -> None:
    """Score 1,797 handwritten digits on two actors and check the answers."""
    from .demo import run_demo
    from .progress import reporter_for

    result = run_demo(out, reporter_for())
    if as_json:
        values = {"held_out_rows": result.held_out_rows, "held_out_accuracy": result.held_out_accuracy}
        click.echo(json.dumps({**values, "summary": result.summary.as_json()}, indent=1))
        return
    click.echo(f"held-out accuracy {result.held_out_accuracy:.2%} on {result.held_out_rows} digits")
    _print(result.summary, as_json)


def _print(result: Any, as_json: bool) -> None:
    text = json.dumps(result.as_json(), indent=1) if as_json else "\n".join(result.lines())
    click.echo(text)
