"""``cache list|show|verify|prune``."""

from __future__ import annotations

import re
import sys

import click

from .options import as_json_option, option, print_result, results_alone

__all__ = ["cache"]

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_where = option(
    "--cache", "url", metavar="URI", text="Folder or s3://; by default TRTFLEET_CACHE or ~/.cache."
)


class _Age(click.ParamType[float]):
    """A length of time such as 12h or 30d, in seconds."""

    name = "age"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads a number with its unit."""
        if isinstance(value, int | float):
            return float(value)
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no age, write for example 12h or 30d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.group()
def cache() -> None:
    """List, check and clean the engine cache."""


@cache.command("list")
@_where
@as_json_option
def list_engines(url: str | None, as_json: bool) -> None:
    """List the engines of a cache, and the batch sizes remembered."""
    from ..cache import list_cache

    with results_alone():
        found = list_cache(url)
    print_result(found, as_json)


@cache.command()
@click.argument("key")
@_where
@as_json_option
def show(key: str, url: str | None, as_json: bool) -> None:
    """Show everything about the engine whose key begins with KEY."""
    from ..cache import show_engine

    with results_alone():
        found = show_engine(key, url)
    print_result(found, as_json)


@cache.command()
@click.argument("key", required=False)
@_where
@as_json_option
def verify(key: str | None, url: str | None, as_json: bool) -> None:
    """Read every file of every engine, or of one, and compare it with its manifest.

    Exits with 15 when something is damaged.
    """
    from ..cache import verify_cache

    with results_alone():
        found = verify_cache(url, key)
    print_result(found, as_json)
    sys.stdout.flush()
    found.check()


@cache.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@_where
@option("--model", default="", metavar="DIGEST", text="Of this model only.")
@option("--older-than", type=_Age(), metavar="AGE", text="Published at least so long ago: 12h, 30d.")
@option("--all", "everything", is_flag=True, text="All of them.")
@option("--damaged", is_flag=True, text="Damaged engines; reads every file.")
@option("--dry-run", is_flag=True, text="Only tell what would go.")
@as_json_option
def prune(
    keys: tuple[str, ...],
    url: str | None,
    model: str,
    older_than: float | None,
    everything: bool,
    damaged: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove engines and batch sizes that meet all conditions given, then whatever no engine needs any more.

    Without a condition none of them goes, only leftovers of builds that died.
    """
    from ..cache import prune_cache

    with results_alone():
        done = prune_cache(
            url,
            keys=keys,
            model=model,
            older_than_s=older_than,
            everything=everything,
            damaged=damaged,
            dry_run=dry_run,
        )
    print_result(done, as_json)
