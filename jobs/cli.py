"""The command line. Exit codes are those of ``trtfleet.errors``; results go to stdout, the rest to stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from ..errors import InternalError, TrtfleetError, UsageError

__all__ = ["main"]

_INTERRUPTED = 130
_COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "none")
_BACKENDS = ("auto", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt")


def main() -> NoReturn:
    """Runs the command line and exits with a documented code; no traceback reaches the user."""
    try:
        cli.main(prog_name="trtfleet", standalone_mode=False)
        code = 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        fact = " ".join(error.format_message().split())
        code = _show(UsageError(fact.rstrip("."), "see `trtfleet --help` and `trtfleet COMMAND --help`"))
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
@click.version_option(package_name="trtfleet", prog_name="trtfleet")
def cli() -> None:
    """Offline inference at cluster scale: score Parquet and Arrow datasets, every row exactly once."""


class _IntOr(click.ParamType[Any]):
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


def _option(*names: str, text: str, **how: Any) -> Callable[[Any], Any]:
    return click.option(*names, help=text, **how)


_OPTIONS = (
    _option(
        "--input",
        multiple=True,
        metavar="NAME=COLUMN",
        text="Column of a model input; NAME=A,B,C stacks columns. Guessed when unambiguous.",
    ),
    _option("--keep", multiple=True, metavar="COL", text="Column carried into the output."),
    _option("--batch-size", type=_IntOr("auto"), text="Rows a batch; auto measures."),
    _option("--actors", type=_IntOr("auto"), text="Ray actors; auto takes as many as fit."),
    _option("--cpus-per-actor", type=int, metavar="N", text="CPUs and engine threads of each actor."),
    _option("--backend", type=click.Choice(_BACKENDS), text="What executes the model."),
    _option(
        "--normalize",
        metavar="imagenet|MEAN:STD",
        text="Done inside the network, in units of the stored values.",
    ),
    _option(
        "--layout",
        type=click.Choice(["nhwc", "nchw"]),
        text="How images are stored, where the column's type does not tell.",
    ),
    _option("--resize", metavar="HxW", text="Size that JPEG and PNG images are resized to."),
    _option("--emit", metavar="raw|softmax|argmax|topk:K", text="What to write of each output."),
    _option("--output", multiple=True, metavar="NAME", text="Model output to write; all by default."),
    _option("--preprocess", metavar="MODULE:FUNCTION", text="Hook before the network."),
    _option("--postprocess", metavar="MODULE:FUNCTION", text="Hook after the network."),
    _option(
        "--columns", multiple=True, metavar="COL", text="Column the preprocess hook gets; all by default."
    ),
    _option("--filter", metavar="EXPR", text='Rows to score: label == 3 and split in ("a", "b").'),
    _option("--fill-null", type=float, metavar="X", text="Value for nulls; without it they make bad rows."),
    _option("--pad-to", type=int, metavar="N", text="Length that ragged rows are padded to."),
    _option("--pad-value", type=int, metavar="N", text="What they are padded with."),
    _option("--mask", multiple=True, metavar="NAME", text="Model input that gets the attention mask."),
    _option("--shard-bytes", type=_IntOr("auto"), text="Uncompressed bytes of a shard."),
    _option("--max-bad-rows", type=_IntOr("unlimited"), text="Bad rows tolerated; 0 by default."),
    _option("--compression", type=click.Choice(_COMPRESSIONS), text="Parquet codec of the output."),
    _option(
        "--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default."
    ),
    _option("--overwrite", is_flag=True, default=None, text="Replace an output of another job."),
)


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
    # Ray prints to stdout when a worker dies, whatever it is told; stdout is for the result.
    with contextlib.redirect_stdout(sys.stderr):
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

    with contextlib.redirect_stdout(sys.stderr):
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
