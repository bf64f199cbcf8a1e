"""What decides whether a stored engine is the one wanted: every input of its build, and where it may run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

__all__ = ["ABSENT", "IDENTITY_FORMAT", "Difference", "Identity", "canonical", "in_words"]

IDENTITY_FORMAT = 1
"""Version of what a bundle holds; another one is another engine."""

ABSENT = "absent"
"""Stands in a difference for an option that one side does not have."""

_SHOWN_DIFFERENCES = 6
_DIGEST_SHOWN = 12

Difference = tuple[str, Any, Any]
"""A field's name, ``options.NAME`` for an option; our value; theirs."""


def canonical(values: Any) -> bytes:
    """Plain values as JSON that is the same, byte for byte, for the same values.

    Raises:
        TypeError: A value is not plain.
        ValueError: A number is not finite.
    """
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that an engine was built from and for.

    Attributes:
        model: Digest of the model with its weights.
        network: Digest of the prepared network's bytes; empty when there is none.
        options: What was asked of the build, plain values by name; a copy is kept.
        calibration: Digest of the calibration table and of what was excluded from quantization; None without.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Its full version.
        compute_capability: Of the GPU, e.g. ``9.0``; ``any`` where plans are portable.
        gpu: The GPU's name; ``any`` where plans are portable.
        plugins: The plugin libraries, by name and digest; kept sorted.
        format: Version of what a bundle holds.
    """

    model: str
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    calibration: str | None = None
    flavour: str
    version: str
    compute_capability: str
    gpu: str
    plugins: tuple[str, ...] = ()
    format: int = IDENTITY_FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", json.loads(canonical(dict(self.options))))
        object.__setattr__(self, "plugins", tuple(sorted(self.plugins)))

    @property
    def key(self) -> str:
        """SHA-256 of all fields, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self.as_json())).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "options": dict(self.options), "plugins": list(self.plugins)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Reads what ``as_json`` gave.

        Raises:
            ValueError: The values are not those of an identity.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"an identity has the fields {', '.join(sorted(names))}")
        for name, value in values.items():
            wanted: tuple[type, ...] = {"options": (dict,), "plugins": (list,), "format": (int,)}.get(
                name, (str,)
            )
            if not isinstance(value, wanted) and not (name == "calibration" and value is None):
                raise ValueError(f"{name} of an identity cannot be {type(value).__name__}")
        if not all(isinstance(plugin, str) for plugin in values["plugins"]):
            raise ValueError("plugins of an identity are names")
        return cls(**{**values, "plugins": tuple(values["plugins"])})

    def differences(self, other: Identity) -> list[Difference]:
        """What tells two identities apart, down to single options; empty when their keys are the same."""
        ours, theirs = self._flat(), other._flat()
        found: list[Difference] = []
        for name in dict.fromkeys([*ours, *theirs]):
            here, there = ours.get(name, ABSENT), theirs.get(name, ABSENT)
            is_same = (name in ours) == (name in theirs) and canonical(here) == canonical(there)
            if not is_same:
                found.append((name, here, there))
        return found

    def _flat(self) -> dict[str, Any]:
        values = self.as_json()
        options = values.pop("options")
        return {**values, **{f"options.{name}": value for name, value in sorted(options.items())}}


def in_words(differences: Sequence[Difference]) -> str:
    """Differences as ``precision is fp32 there, fp16 is wanted``, joined by semicolons."""
    said = [
        f"{name.removeprefix('options.')} is {_value(theirs)} there, {_value(ours)} is wanted"
        for name, ours, theirs in differences[:_SHOWN_DIFFERENCES]
    ]
    left = len(differences) - len(said)
    return "; ".join([*said, f"and {left} more fields differ"] if left else said)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    text = value if isinstance(value, str) else canonical(value).decode()
    is_digest = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:_DIGEST_SHOWN] if is_digest else text or "empty"
