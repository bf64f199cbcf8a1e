"""Gets an engine: from the cache, or from whoever builds it already, or by building it for everybody."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import CacheError
from .entry import Entry
from .identity import Identity
from .lease import DEFAULT_TTL_S, Claim
from .staging import How, Staged, stage
from .store import EngineCache

__all__ = ["Built", "obtain"]

_POLLS = 10
_LONGEST_POLL_S = 1.0
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build made.

    Attributes:
        files: The bundle, bytes by name.
        extra: Plain values to keep in the manifest, such as the coverage of the partition.
    """

    files: Mapping[str, bytes]
    extra: Mapping[str, Any] = field(default_factory=dict)


def obtain(
    cache: EngineCache,
    identity: Identity,
    build: Callable[[], Built],
    *,
    ttl_s: float = DEFAULT_TTL_S,
    say: Callable[[str], None] = lambda text: None,
    staging: str | os.PathLike[str] | None = None,
) -> Staged:
    """Finds an engine in the cache, or builds it unless another process does, and stages it on this machine.

    Of all processes that want an engine one builds it. When its build fails or it dies, the next one tries.

    Args:
        cache: Where engines are kept.
        identity: Which one is wanted.
        build: Builds it; called at most once by this process, and not at all when another's is there in time.
        ttl_s: How long a builder may give no sign of life before another takes over; the same for all.
        say: Takes sentences for people: why the cache has nothing, who is waited for, what was built.
        staging: Where this machine keeps copies; None takes the default. A local cache needs none.

    Returns:
        The engine; its ``how`` tells whether it was found, built or waited for.

    Raises:
        CacheError: The cache cannot be read or written, or holds something damaged under this identity.
        Exception: What ``build`` raises.
    """
    for left in reversed(range(_TRIES)):
        entry, how = _entry(cache, identity, build, ttl_s, say)
        try:
            return replace(stage(cache, entry, staging), how=how)
        except CacheError:
            # It may have been removed from the cache since it was found.
            if not left or cache.find(identity) is not None:
                raise
    raise AssertionError("the last try returns or raises")


def _entry(
    cache: EngineCache,
    identity: Identity,
    build: Callable[[], Built],
    ttl_s: float,
    say: Callable[[str], None],
) -> tuple[Entry, How]:
    entry = cache.find(identity)
    if entry is not None:
        say(f"engine {entry.key[:12]} found in {cache.url}")
        return entry, "found"
    say(f"no such engine is cached: {cache.explain_miss(identity)}")
    claim = Claim(cache.objects, identity.key, ttl_s)
    waited_for = ""
    while True:
        lease = claim.take()
        if lease is not None:
            with lease:
                # It may have been published between the last look and the taking of the lease.
                entry = cache.find(identity)
                if entry is not None:
                    return entry, "waited"
                return _build(cache, identity, build, say), "built"
        if claim.holder and claim.holder != waited_for:
            waited_for = claim.holder
            say(f"{waited_for} builds engine {identity.key[:12]}: waiting")
        # Spread, so that those who wait do not all ask at once.
        time.sleep(min(_LONGEST_POLL_S, ttl_s / _POLLS) * random.uniform(0.75, 1.25))
        entry = cache.find(identity)
        if entry is not None:
            say(f"engine {entry.key[:12]} was built on {entry.host}")
            return entry, "waited"


def _build(
    cache: EngineCache, identity: Identity, build: Callable[[], Built], say: Callable[[str], None]
) -> Entry:
    start_s = time.monotonic()
    built = build()
    build_s = time.monotonic() - start_s
    entry = cache.publish(identity, built.files, build_s=build_s, extra=built.extra)
    say(f"engine {entry.key[:12]} built in {build_s:.1f} s, {entry.size_bytes:,} bytes, kept in {cache.url}")
    return entry
