"""What the commands' options share: their types, and the lists that several commands take."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..printable import printable

if TYPE_CHECKING:
    from ..progress import Reporter

__all__ = [
    "BATCH_TIMEOUT",
    "DRY_RUN",
    "ENGINE_OPTIONS",
    "LOG_FORMAT",
    "IntOr",
    "as_json_option",
    "exit_code_alone",
    "option",
    "print_result",
    "reported",
    "results_alone",
    "sample_options",
    "with_options",
]

_PRECISIONS = ("fp32", "fp16", "int8")


Command = Callable[..., None]
Option = Callable[[Any], Any]


class IntOr(click.ParamType[Any]):
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


def option(*names: str, text: str, **how: Any) -> Option:
    """A click option with its help text."""
    return click.option(*names, help=text, **how)


DRY_RUN = option(
    "--dry-run", is_flag=True, text="Only tell what would be done: nothing is run, started or written."
)
LOG_FORMAT = option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    text="What stderr gets: lines for people, or one JSON object a line, from the actors too.",
)
as_json_option = option("--json", "as_json", is_flag=True, text="Result as JSON on stdout.")


def with_options(
    options: Sequence[Option],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds options to a command, in the order given."""
    return lambda command: functools.reduce(lambda made, add: add(made), reversed(options), command)


BATCH_TIMEOUT = option(
    "--batch-timeout",
    type=float,
    metavar="SECONDS",
    text="How long a hook or the engine may take for one batch; 600 by default, inf for any time.",
)


def sample_options(backends: Sequence[str], *, backend: str, column: str, hook: str) -> tuple[Option, ...]:
    """What jobs over a sample of a dataset share: their actors, and how networks are fed.

    Args:
        backends: That may be chosen.
        backend: Help of ``--backend``.
        column: Help of ``--input``.
        hook: Help of ``--preprocess``.
    """
    return (
        option("--actors", type=IntOr("auto"), text="Ray actors; auto takes as many as fit."),
        option("--cpus-per-actor", type=float, metavar="X", text="CPUs of each actor, or a part of one."),
        option("--gpus-per-actor", type=float, metavar="X", text="Below 1, actors share a GPU."),
        BATCH_TIMEOUT,
        option("--backend", type=click.Choice(backends), text=backend),
        option("--input", multiple=True, metavar="NAME=COLUMN", text=column),
        option("--normalize", metavar="imagenet|MEAN:STD", text="As in `score`, like the following."),
        option("--layout", type=click.Choice(["nhwc", "nchw"]), text="How images are stored."),
        option("--resize", metavar="HxW", text="Size that JPEG and PNG images are resized to."),
        option("--preprocess", metavar="MODULE:FUNCTION", text=hook),
        option(
            "--columns", multiple=True, metavar="COL", text="Column the preprocess hook gets; all if none."
        ),
        option(
            "--fill-null", type=float, metavar="X", text="Value for nulls; without it they make bad rows."
        ),
        option("--pad-to", type=int, metavar="N", text="Length that ragged rows are padded to."),
        option("--pad-value", type=int, metavar="N", text="What they are padded with."),
        option("--mask", multiple=True, metavar="NAME", text="Model input that gets the attention mask."),
        option(
            "--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default."
        ),
        option("--cache", metavar="URI", text="Engine cache; by default TRTFLEET_CACHE or ~/.cache."),
    )


def print_result(result: Any, as_json: bool) -> None:
    """Prints a result with ``as_json()`` and ``lines()`` to stdout."""
    lines = printable("\n".join(result.lines()), lines=True) if not as_json else ""
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else lines)


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Sends to stderr what libraries print meanwhile: Ray prints when a worker dies, whatever it is told."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def reported(log_format: str | None, doing: str) -> Iterator[Reporter]:
    """The reporter for a command's log format; in JSON the log has the last word, and the exit code follows.

    Args:
        log_format: As it was asked for; None for the default.
        doing: What a bar says.
    """
    from ..progress import JsonLines, reporter_for, telling_failure

    if log_format != "json":
        yield reporter_for(doing=doing)
        return
    log = JsonLines()
    with exit_code_alone(), telling_failure(log):
        yield log


@contextlib.contextmanager
def exit_code_alone() -> Iterator[None]:
    """Ends the command with the documented code: its log has said why, and takes no lines for people."""
    from ...errors import InternalError, TrtfleetError

    try:
        yield
    except TrtfleetError as error:
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error
    except BrokenPipeError:
        raise
    except Exception as error:
        if os.environ.get("TRTFLEET_DEBUG"):
            raise
        raise SystemExit(InternalError.exit_code) from error


ENGINE_OPTIONS = (
    option("--precision", type=click.Choice(_PRECISIONS), text="What the network computes in."),
    option(
        "--table",
        type=click.Path(),
        metavar="T.json",
        text="Calibration table for int8; by default the one kept beside the engine cache.",
    ),
    option(
        "--exclude",
        multiple=True,
        metavar="NODE|OP",
        text="Node, operator or pattern of these that is not quantized.",
    ),
    option("--max-batch-size", type=int, metavar="N", text="Largest batch that TensorRT engines accept."),
    option(
        "--workspace-size",
        type=int,
        metavar="BYTES",
        text="Device memory for TensorRT's kernels.",
    ),
    option(
        "--min-subgraph-size",
        type=int,
        metavar="N",
        text="Smaller segments stay native; 3 by default.",
    ),
    option(
        "--profile",
        multiple=True,
        metavar="NAME=MIN,OPT,MAX",
        text="Shapes of an input with free dimensions, e.g. ids=1x16,8x64,32x256.",
    ),
    option("--optimization-level", type=int, metavar="N", text="TensorRT's optimization level, 0 to 5."),
    option("--exclude-op", multiple=True, metavar="OP", text="Operator that stays native."),
    option("--cache", metavar="URI", text="Engine cache; by default TRTFLEET_CACHE or ~/.cache."),
)
"""The options of building engines that ``score`` and ``build`` share."""
