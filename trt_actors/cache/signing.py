"""Signatures under what a shared cache holds, for caches that more people can write to than are trusted.

The key is each process's own, from its environment: it is in no specification, no message and no pickle, so
that neither Ray's dashboard nor a log ever has it. Every node must have it before Ray starts there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from typing import Any, NoReturn

from ...errors import CacheError

__all__ = ["KEY", "KEY_FILE", "CacheKey", "cache_key", "key_id", "require_key"]

KEY = "TRTFLEET_CACHE_KEY"
KEY_FILE = "TRTFLEET_CACHE_KEY_FILE"

_LEAST_BYTES = 16
_MOST_BYTES = 4096
_ID_DIGITS = 12
_MAKE_ONE = "make one with `openssl rand -hex 32`"
# A secret that is mounted for a group is still one; what everybody can read, or a group can change, is not.
_TOO_OPEN = stat.S_IWGRP | stat.S_IRWXO


class CacheKey:
    """A key for signatures (HMAC-SHA256); it does not travel between processes.

    Args:
        secret: At least 16 bytes that cannot be guessed.

    Attributes:
        id: 12 hexadecimal digits that tell keys apart and nothing about them.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.id = self.sign("id", b"")[:_ID_DIGITS]

    def __repr__(self) -> str:
        return f"CacheKey(id={self.id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("the key of a cache stays in its process")

    def sign(self, kind: str, data: bytes) -> str:
        """The signature of some bytes, 64 hexadecimal digits.

        Args:
            kind: What they are, so that nothing signed as one thing passes for another.
            data: The bytes.
        """
        message = f"trtfleet {kind}\0".encode() + data
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    def accepts(self, kind: str, data: bytes, signature: Any) -> bool:
        """Whether a signature, from anywhere, is this key's under these bytes."""
        given = signature.encode(errors="replace") if isinstance(signature, str) else b""
        return hmac.compare_digest(self.sign(kind, data).encode(), given)


def cache_key() -> CacheKey | None:
    """This process's key: TRTFLEET_CACHE_KEY, or the content of the file TRTFLEET_CACHE_KEY_FILE.

    Returns:
        None when neither is set; whitespace around the key does not count.

    Raises:
        CacheError: Both are set, the file cannot be read or is not private, or the key is too short.
    """
    given, path = os.environ.get(KEY), os.environ.get(KEY_FILE)
    if given is None and path is None:
        return None
    if given is not None and path is not None:
        raise CacheError(f"both {KEY} and {KEY_FILE} are set", "unset one of them")
    secret = _read(path) if path is not None else os.fsencode(given or "")
    secret, source = secret.strip(), KEY if path is None else f"{KEY_FILE} {path}"
    if not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        raise CacheError(
            f"the key of {source} has {len(secret):,} bytes, {_LEAST_BYTES} to {_MOST_BYTES:,} are wanted",
            _MAKE_ONE,
        )
    return CacheKey(secret)


def key_id() -> str:
    """The id of this process's key, empty without one.

    Raises:
        CacheError: See ``cache_key``.
    """
    key = cache_key()
    return key.id if key else ""


def require_key(wanted: str) -> None:
    """Makes sure that this process signs and checks as the one that started the job does.

    Args:
        wanted: The id of that one's key; empty when it has none, which any process satisfies.

    Raises:
        CacheError: This process has no key, or another one.
    """
    if not wanted:
        return
    ours = key_id()
    if ours != wanted:
        has = f"has another one (id {ours})" if ours else "has none"
        raise CacheError(
            f"the job was started with a key for the engine cache (id {wanted}), this process {has}",
            f"give every node the same key: set {KEY_FILE} there before Ray starts",
        )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & _TOO_OPEN:
                raise CacheError(
                    f"{KEY_FILE} {path} can be read by everybody or changed by others "
                    f"(mode {stat.S_IMODE(mode):o})",
                    f"chmod 600 {path}",
                )
            return file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CacheError(f"{KEY_FILE} {path} cannot be read: {why}", _MAKE_ONE) from error
