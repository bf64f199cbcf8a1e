"""Where engines are kept when nobody says."""

from __future__ import annotations

import os

from ...errors import CacheError

__all__ = ["default_cache_url", "default_staging_folder"]

_CACHE = "TRTFLEET_CACHE"
_STAGING = "TRTFLEET_STAGING"


def default_cache_url() -> str:
    """The engine cache to use: TRTFLEET_CACHE, else ``trtfleet/engines`` in the user's cache folder.

    Raises:
        CacheError: There is no such folder, as for a user without a home.
    """
    return os.environ.get(_CACHE) or os.path.join(_user_folder(_CACHE), "engines")


def default_staging_folder() -> str:
    """Where a node keeps copies: TRTFLEET_STAGING, else ``trtfleet/staged`` in the user's cache folder.

    Raises:
        CacheError: There is no such folder, as for a user without a home.
    """
    return os.environ.get(_STAGING) or os.path.join(_user_folder(_STAGING), "staged")


def _user_folder(variable: str) -> str:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of that variable has relative paths ignored.
    base = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise CacheError("this user has no home folder to keep engines in", f"set {variable} to a folder")
    return os.path.join(base, "trtfleet")
