"""How good files become hostile ones: cut, flipped, repeated, overwritten; in JSON, values are replaced."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from hypothesis import strategies as st
from trtfleet.trt_actors.cache.identity import canonical

__all__ = ["Hostile", "changed_bytes", "changed_json", "resealed"]

_NUMBERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


class Hostile(bytes):
    """Bytes that do not fill the screen; the tests keep those that broke something in a file."""

    def __repr__(self) -> str:
        return f"{len(self):,} bytes, {hashlib.sha256(self).hexdigest()[:12]}"


ODD_VALUES: list[Any] = [
    *(None, True, 0, -1, 1 << 62, 1 << 70, 10**400, 1.5, -0.0, float("inf"), float("nan"), 1e308),
    *("", "x", "../../../etc/passwd", "/etc/passwd", "a\nb", "\x1b[2J", "\ud800", "é" * 50, "9" * 300),
    *([], {}, [[]], {"": None}, [None] * 3, {"a": {"b": []}}),
]
"""Values that a field may have that should have another one."""


@st.composite
def changed_bytes(draw: st.DrawFn, seeds: list[bytes]) -> Hostile:
    """A seed with up to six changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "number", "cut", "delete", "repeat", "insert"])):
            case "flip":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                size = draw(st.sampled_from([1, 2, 4, 8]))
                order = draw(st.sampled_from(["little", "big"]))
                number = draw(st.sampled_from(_NUMBERS)) & ((1 << 8 * size) - 1)
                data[at : at + size] = number.to_bytes(size, order)
            case "cut":
                del data[at:]
            case "delete":
                del data[at : at + draw(st.integers(1, 16))]
            case "repeat":
                piece = bytes(data[at : at + draw(st.integers(1, 64))])
                data[at:at] = piece * draw(st.integers(1, 16))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=16))
    return Hostile(data)


@st.composite
def changed_json(draw: st.DrawFn, seeds: list[bytes]) -> Hostile:
    """A seed, a JSON object, with up to three values replaced, added or taken away somewhere in it."""
    values = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        holder: Any = values
        while True:
            places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not places:
                break
            place = draw(st.sampled_from(places))
            inner = holder[place]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                holder = inner
                continue
            match draw(st.sampled_from(["replace", "replace", "remove", "add"])):
                case "replace":
                    holder[place] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
                case "remove":
                    del holder[place]
                case "add" if isinstance(holder, dict):
                    holder[draw(st.text(max_size=5))] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
            break
    return Hostile(json.dumps(values).encode())


def resealed(data: Hostile) -> Hostile:
    """A manifest with the digest of what it now holds, as whoever changes one on purpose would write it."""
    values = json.loads(data)
    try:
        content = canonical({name: values[name] for name in values if name not in ("format", "sha256")})
    except ValueError:
        return data
    return Hostile(json.dumps({**values, "sha256": hashlib.sha256(content).hexdigest()}).encode())
