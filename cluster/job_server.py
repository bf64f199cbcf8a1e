"""Where a cluster takes jobs: its address, whether that is this machine, and whether it asks for a token."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from ..errors import ClusterError

__all__ = ["AUTH_HINT", "DEFAULT_URL", "is_this_machine", "only_this_address", "require_token", "url_of"]

DEFAULT_URL = "http://127.0.0.1:8265"
AUTH_HINT = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN) to the cluster's token; "
    "`ray get-auth-token` on the head node prints it"
)

_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_DASHBOARD_HINT = "is it a Ray head node's dashboard?"
_ANSWER_S = 5.0
_REFUSED = (401, 403)


def url_of(address: str | None) -> str:
    """The URL of a cluster's job server, where something answers.

    Args:
        address: Its URL; None takes ``RAY_API_SERVER_ADDRESS``, then ``RAY_ADDRESS``, then this machine.

    Raises:
        ClusterError: It is no such URL, or nothing answers there.
    """
    given = address or next(filter(None, map(os.environ.get, _ADDRESS_VARIABLES)), DEFAULT_URL)
    hint = f"jobs go to the head node's dashboard, by default {DEFAULT_URL}: --address http://HOST:8265"
    parts = urlsplit(given)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ClusterError(f"{given} is no address of a job server: {error}", hint) from error
    if parts.scheme not in ("http", "https") or not host:
        raise ClusterError(f"{given} is no address of a job server", hint)
    if parts.username or parts.password:
        raise ClusterError("the address of the job server holds a user name or password", AUTH_HINT)
    try:
        port = port or (443 if parts.scheme == "https" else 80)
        # Where packets are dropped, Ray's client itself would wait without end.
        socket.create_connection((host, port), _ANSWER_S).close()
    except (OSError, UnicodeError) as error:
        raise ClusterError(f"nothing answers at {given}: {error}", f"is the head node up? {hint}") from error
    return given.rstrip("/")


def is_this_machine(url: str) -> bool:
    """Whether a URL's host is this machine, as far as addresses tell: a forwarded port looks like it, too."""
    host = urlsplit(url).hostname or ""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(map(_is_own, found))


def _is_own(address: str) -> bool:
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        # Only an address of one's own can be bound.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def require_token(url: str) -> None:
    """Makes sure that a job server lets nobody in without a token, and that we are going to send one.

    Raises:
        ClusterError: One of the two is not so.
    """
    otherwise = "or, where only you can reach the cluster, pass --allow-no-token"
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ClusterError(
            f"{url} is another machine, and no token is set for it", f"{AUTH_HINT}; {otherwise}"
        )
    try:
        urllib.request.urlopen(f"{url}/api/jobs/", timeout=_ANSWER_S).close()
    except urllib.error.HTTPError as error:
        if error.code in _REFUSED:
            return
        raise ClusterError(
            f"{url} answers with HTTP {error.code}", "is it a Ray head node's dashboard?"
        ) from error
    except (OSError, ValueError) as error:
        raise ClusterError(f"{url} does not answer: {error}", _DASHBOARD_HINT) from error
    raise ClusterError(
        f"{url} takes jobs from anybody, without a token",
        f"start the cluster with RAY_AUTH_MODE=token; {otherwise}",
    )


@contextlib.contextmanager
def only_this_address() -> Iterator[None]:
    """Hides the variables that Ray's client would take instead of the address it is given."""
    before = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
