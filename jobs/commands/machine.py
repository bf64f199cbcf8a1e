"""``doctor``."""

from __future__ import annotations

import sys

import click

from .options import as_json_option, print_result, results_alone

__all__ = ["doctor"]


@click.command()
@click.option("--selftest", is_flag=True, help="Build and run a small model on every available backend.")
@as_json_option
def doctor(selftest: bool, as_json: bool) -> None:
    """Show what this machine has, which backend `auto` takes on it, and why not a better one.

    Exits with 11 when the self-test of an available backend fails.
    """
    from ...errors import BackendError
    from ..doctor import examine
    from ..selftest import try_backend

    with results_alone():
        found = examine(try_backend if selftest else None)
    print_result(found, as_json)
    sys.stdout.flush()
    if not found.is_well:
        failed = ", ".join(trial.backend for trial in found.trials if trial.works is False)
        raise BackendError(f"the self-test failed on {failed}", "see the lines above")
