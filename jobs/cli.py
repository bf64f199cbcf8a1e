"""The command line. Exit codes are those of ``trtfleet.errors``; results go to stdout, the rest to stderr."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import click

from ..errors import InternalError, TrtfleetError, UsageError
from .commands.cache import cache
from .commands.calibrate import calibrate
from .commands.cluster import cluster
from .commands.compare import compare
from .commands.convert import convert
from .commands.engines import build, inspect, partition
from .commands.int8 import quantize
from .commands.machine import doctor
from .commands.scoring import demo, score, status
from .commands.submit import submit
from .commands.sweep import sweep
from .printable import printable

__all__ = ["main"]

_INTERRUPTED = 130


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
    click.echo(f"error: {printable(error.fact)}", err=True)
    if error.hint:
        click.echo(f"hint: {printable(error.hint)}", err=True)
    return error.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trtfleet", prog_name="trtfleet")
def cli() -> None:
    """Offline inference at cluster scale: score Parquet and Arrow datasets, every row exactly once."""


for command in (
    score,
    status,
    convert,
    build,
    partition,
    calibrate,
    quantize,
    compare,
    sweep,
    submit,
    inspect,
    cache,
    cluster,
    doctor,
    demo,
):
    cli.add_command(command)
