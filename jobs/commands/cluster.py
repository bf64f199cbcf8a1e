"""``cluster``."""

from __future__ import annotations

import click

from .options import as_json_option, option, print_result, results_alone

__all__ = ["cluster"]


@click.command()
@option("--address", metavar="ADDRESS", text="Ray cluster; RAY_ADDRESS or Ray on this machine by default.")
@option("--cache", metavar="URI", text="Engine cache; by default TRTFLEET_CACHE or ~/.cache.")
@option(
    "--timeout",
    "timeout_s",
    type=float,
    metavar="X",
    text="Seconds that nodes have to answer; 60 by default.",
)
@as_json_option
def cluster(address: str | None, cache: str | None, timeout_s: float | None, as_json: bool) -> None:
    """Show the nodes of a Ray cluster as actors would find them, and what is cached for their GPUs.

    A node that does not answer is told with the reason. Nothing is reserved: jobs that run are not disturbed.
    """
    from ..cluster_survey import DEFAULT_TIMEOUT_S, survey

    with results_alone():
        found = survey(address, cache=cache, timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s)
    print_result(found, as_json)
