"""``submit``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .options import option, with_options

if TYPE_CHECKING:
    from ..submit import SubmitSpec

__all__ = ["submit"]

_COMMANDS = ("score", "calibrate", "compare", "sweep")
_READS = ("model", "models", "model_a", "model_b", "spec", "table", "compare")
_WRITES = ("out", "report", "trace")

_OPTIONS = (
    option(
        "--address", metavar="URL", text="Job server; RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's."
    ),
    option("--wait/--no-wait", default=True, text="Follow the job to its end (default), or print its id."),
    option("--resume", is_flag=True, text="Follow the job if it still runs; start it again if it was lost."),
    option(
        "--working-dir",
        metavar="DIR",
        text="Folder to ship, where the command's relative paths are.",
    ),
    option("--ship/--no-ship", default=True, text="Ship this version of trtfleet (default)."),
    option("--python", default="python", metavar="PATH", text="The head node's Python; python by default."),
    option("--allow-no-token", is_flag=True, text="Accept a remote cluster that asks for no token."),
)


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("command", nargs=-1, metavar="COMMAND...", type=click.UNPROCESSED)
@with_options(_OPTIONS)
def submit(command: tuple[str, ...], **flags: Any) -> None:
    """Run COMMAND (score, calibrate, compare or sweep, with its options) as a job on a Ray cluster.

    Shows the job's log, prints its results and exits with its exit code. Ctrl-C asks, a second one stops the
    job. With --resume and no COMMAND it is that of the latest job.

    For example: trtfleet submit --working-dir models/ -- score m.onnx s3://b/data/ s3://b/out/
    """
    from ..submit import SubmitSpec, latest_command, run_submit

    if not command and flags["resume"]:
        folder = flags["working_dir"] is not None
        command = latest_command(flags["address"], flags["allow_no_token"], folder)
    spec = SubmitSpec(command=command, **flags)
    places = _places(spec)
    code = run_submit(spec, places, say=lambda line: click.echo(line, err=True), result=click.echo)
    sys.exit(code)


def _places(spec: SubmitSpec) -> Any:
    """Reads the command as it will be read on the cluster; the files that it names."""
    from ..submit_check import check_command
    from ..submit_places import Places

    root = click.get_current_context().find_root()
    group = root.command
    assert isinstance(group, click.Group)
    name, *arguments = spec.command
    found = group.commands.get(name) if name in _COMMANDS else None
    if found is None:
        raise click.UsageError(f"{name!r} cannot be submitted, only {', '.join(_COMMANDS)}")
    given = found.make_context(name, arguments, parent=root).params
    if given.get("address"):
        raise click.UsageError(
            "the command's own --address is not allowed: the job runs where it is submitted"
        )
    given = check_command(name, given, spec.working_dir)
    writes = {*_WRITES, "table"} if name == "calibrate" else set(_WRITES)
    return Places(
        reads=tuple(text for key in _READS if key not in writes for text in _texts(given.get(key))),
        data=tuple(_texts(given.get("data"))),
        writes=tuple(text for key in sorted(writes) for text in _texts(given.get(key))),
    )


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]
