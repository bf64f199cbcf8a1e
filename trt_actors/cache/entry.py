"""The manifest of a cached engine: what it is of, and the size and digest of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ...errors import CacheError
from .identity import Identity, canonical
from .signing import CacheKey

__all__ = ["FORMAT", "Entry", "StoredFile", "is_newer"]

FORMAT = 2
"""Version of the manifest; one of a higher version is refused."""

_UNSIGNED_FORMAT = 1
_SIGNED = "engine"
_SHA256 = re.compile("[0-9a-f]{64}")
_LATEST_S = 253402300800.0


def _removal(key: str) -> str:
    return f"remove it with `trtfleet cache prune {key[:12]}`; the next job builds it anew"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file of a bundle, as it must be found.

    Attributes:
        sha256: Its digest, which is also its name among the blobs.
        size_bytes: Its length.
    """

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        # The digest becomes part of a path.
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.sha256!r} is no SHA-256")
        if type(self.size_bytes) is not int or self.size_bytes < 0:
            raise ValueError(f"{self.size_bytes!r} is no size")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Describes some bytes."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cached engine: a bundle of files for one identity.

    Attributes:
        identity: What the engine is of.
        files: What belongs to it, by name.
        created_s: Unix time of its publication, by the builder's clock.
        host: Where it was built.
        build_s: How long that took.
        extra: Further plain values, such as the coverage of the partition.
    """

    identity: Identity
    files: Mapping[str, StoredFile] = field(hash=False)
    created_s: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    build_s: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", json.loads(canonical(dict(self.extra))))

    @property
    def key(self) -> str:
        """The identity's key, under which the manifest lies."""
        return self.identity.key

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(stored.size_bytes for stored in self.files.values())

    def file(self, name: str) -> StoredFile:
        """Describes one file.

        Raises:
            CacheError: The bundle has none of that name.
        """
        if name not in self.files:
            has = ", ".join(sorted(self.files)) or "nothing"
            raise CacheError(f"engine {self.key[:12]} has no file {name!r}, it has {has}", _removal(self.key))
        return self.files[name]

    def check(self, name: str, *, size_bytes: int, sha256: str, where: str) -> None:
        """Compares what was found of a file with what must be found.

        Raises:
            CacheError: They differ; nothing of the file may be used.
        """
        wanted = self.file(name)
        if size_bytes != wanted.size_bytes:
            raise CacheError(
                f"{name} of engine {self.key[:12]} is damaged: {where} has {size_bytes:,} bytes, "
                f"the manifest says {wanted.size_bytes:,}",
                _removal(self.key),
            )
        if sha256 != wanted.sha256:
            raise CacheError(
                f"{name} of engine {self.key[:12]} is damaged: {where} has SHA-256 {sha256[:12]}..., "
                f"the manifest says {wanted.sha256[:12]}...",
                _removal(self.key),
            )

    def missing(self, name: str, where: str) -> CacheError:
        """The error for a file that is not where it must be."""
        return CacheError(f"{name} of engine {self.key[:12]} is missing: {where}", _removal(self.key))

    def checked(self, name: str, data: bytes, where: str) -> bytes:
        """Gives a file's bytes back when they are the right ones.

        Raises:
            CacheError: They are not.
        """
        self.check(name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), where=where)
        return data

    def as_json(self) -> dict[str, Any]:
        """The manifest as plain values, without its format and digest."""
        files = {
            name: {"sha256": stored.sha256, "size_bytes": stored.size_bytes}
            for name, stored in sorted(self.files.items())
        }
        return {
            "identity": self.identity.as_json(),
            "files": files,
            "created_s": self.created_s,
            "host": self.host,
            "build_s": self.build_s,
            "extra": dict(self.extra),
        }

    def encode(self, key: CacheKey | None = None) -> bytes:
        """The manifest as UTF-8 JSON with a digest of itself, and with a signature where there is a key."""
        values = self.as_json()
        digest = hashlib.sha256(canonical(values)).hexdigest()
        head: dict[str, Any] = {"format": _UNSIGNED_FORMAT, "sha256": digest}
        if key is not None:
            head = {"format": FORMAT, "sha256": digest, "hmac": key.sign(_SIGNED, canonical(values))}
        return json.dumps({**head, **values}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, where: str, key: CacheKey | None = None) -> Self:
        """Reads a manifest.

        Args:
            data: From anywhere.
            where: It was found, for messages.
            key: Must have signed it; None takes it signed or not.

        Raises:
            CacheError: It is damaged, not signed with the key, or a later version of trtfleet wrote it.
        """
        hint = "remove it with `trtfleet cache prune --damaged`; the next job builds the engine anew"
        try:
            values = json.loads(data)
            version = values.pop("format")
            if type(version) is int and version in (_UNSIGNED_FORMAT, FORMAT):
                signature = values.pop("hmac") if version == FORMAT else None
                content = canonical({name: value for name, value in values.items() if name != "sha256"})
                if key is not None and not key.accepts(_SIGNED, content, signature):
                    raise _unsigned(where, key, has_one=version == FORMAT)
                return cls._of(values)
        except (
            *(ValueError, TypeError, KeyError, AttributeError),
            *(RecursionError, OverflowError),
        ) as error:
            raise CacheError(f"{where} is damaged: {' '.join(str(error).split())[:200]}", hint) from error
        if not _is_later(version):
            raise CacheError(f"{where} is damaged: it has the format {version!r}", hint)
        raise CacheError(
            f"{where} has format {version}, this trtfleet reads format {FORMAT}",
            "upgrade trtfleet, or use another cache",
        )

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        digest = values.pop("sha256")
        if hashlib.sha256(canonical(values)).hexdigest() != digest:
            raise ValueError("its content does not have the SHA-256 that it says")
        files = {name: StoredFile(**stored) for name, stored in values.pop("files").items()}
        identity = Identity.from_json(values.pop("identity"))
        _check_kinds(values)
        return cls(identity=identity, files=files, **values)


def _check_kinds(values: dict[str, Any]) -> None:
    for name in ("created_s", "build_s"):
        if type(values[name]) not in (int, float) or not 0 <= values[name] < _LATEST_S:
            raise ValueError(f"{name} cannot be {values[name]!r}"[:80])
    for name, kind in (("host", str), ("extra", dict)):
        if not isinstance(values[name], kind):
            raise ValueError(f"{name} cannot be {type(values[name]).__name__}")


def _unsigned(where: str, key: CacheKey, *, has_one: bool) -> CacheError:
    wrong = "was changed, or signed with another key" if has_one else "is not signed"
    return CacheError(
        f"{where} {wrong}: only engines signed with key {key.id} are taken",
        "remove it with `trtfleet cache prune --damaged` where that key is set; the next job builds it anew",
    )


def _is_later(version: Any) -> bool:
    return type(version) is int and version > FORMAT


def is_newer(data: bytes) -> bool:
    """Whether a later version of trtfleet wrote a manifest."""
    try:
        return _is_later(json.loads(data)["format"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
