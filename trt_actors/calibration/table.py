"""The calibration table: what int8 is to represent of every activation of one model, as a JSON file.

Equal tables are equal bytes: nothing in it tells when, where or by how many actors it was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from ...errors import CalibrationError, UsageError
from ..cache.identity import ABSENT, canonical, in_words
from .statistics import TensorStatistics
from .tensor_range import TensorRange
from .thresholds import Method, threshold

__all__ = ["FORMAT", "CalibrationTable", "TensorRange"]

FORMAT = 1
"""Version of the file; one of a higher version is refused."""

_MAX_BYTES = 64 << 20
_MAX_TENSORS = 20_000
_DIGEST_SHOWN = 12
_KINDS: dict[str, type] = {
    "model": str,
    "model_name": str,
    "method": str,
    "samples": int,
    "seed": int,
    "batch_size": int,
    "feed": dict,
    "excluded": list,
    "tensors": dict,
}


@dataclass(frozen=True, kw_only=True)
class CalibrationTable:
    """Ranges of a model's activations and how they were found.

    Attributes:
        model: The model's digest, SHA-256 in hex over file and external data.
        model_name: Its file name, for people.
        method: As ``str(Method)`` writes it.
        samples: Rows that went through the network.
        seed: That they were drawn with.
        batch_size: Rows of a batch.
        feed: What decided the values fed, plain values by option: ``normalize``, ``layout``, ...
        excluded: Nodes and operators whose tensors were left out, as given.
        tensors: By name, kept sorted.
    """

    model: str
    model_name: str
    method: str
    samples: int
    seed: int
    batch_size: int
    feed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    excluded: tuple[str, ...] = ()
    tensors: Mapping[str, TensorRange] = field(hash=False)

    def __post_init__(self) -> None:
        if len(self.model) != 64 or set(self.model) - set("0123456789abcdef"):
            raise ValueError(f"the model's digest is 64 hexadecimal digits, got {self.model[:80]!r}")
        for name, least in (("samples", 1), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not self.tensors:
            raise ValueError("it has no tensors")
        # A copy, and as JSON gives it back, so that a table read equals the one written.
        object.__setattr__(self, "feed", json.loads(canonical(dict(self.feed))))
        object.__setattr__(self, "excluded", tuple(self.excluded))
        object.__setattr__(self, "tensors", dict(sorted(self.tensors.items())))

    @classmethod
    def from_statistics(
        cls,
        statistics: Mapping[str, TensorStatistics],
        *,
        model: str,
        model_name: str,
        method: Method,
        samples: int,
        seed: int,
        batch_size: int,
        feed: Mapping[str, Any] | None = None,
        excluded: tuple[str, ...] = (),
    ) -> Self:
        """Chooses the thresholds.

        Args:
            statistics: Of every tensor, merged over all batches.
            model: See the attributes, as the rest.
            model_name: Likewise.
            method: How thresholds are chosen.
            samples: Likewise.
            seed: Likewise.
            batch_size: Likewise.
            feed: Likewise.
            excluded: Likewise.

        Raises:
            CalibrationError: A tensor, which is named, had no values or some that are not finite.
        """
        tensors = {}
        for name, found in sorted(statistics.items()):
            try:
                tensors[name] = TensorRange.of(found, threshold(found, method))
            except CalibrationError as error:
                raise CalibrationError(f"tensor {name!r}: {error.fact}", error.hint) from error
        return cls(
            model=model,
            model_name=model_name,
            method=str(method),
            samples=samples,
            seed=seed,
            batch_size=batch_size,
            feed=feed or {},
            excluded=excluded,
            tensors=tensors,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def scales(self) -> dict[str, float]:
        """The scale of every tensor, sorted by name."""
        return {name: tensor.scale for name, tensor in self.tensors.items()}

    def worst_clipped(self, most: int = 10) -> list[tuple[str, TensorRange]]:
        """The tensors that lose the largest shares of their values beyond the threshold, the worst first."""
        losing = [item for item in self.tensors.items() if item[1].clipped > 0]
        return sorted(losing, key=lambda item: (-item[1].clipped, item[0]))[:most]

    def require_model(self, digest: str, model_path: str) -> None:
        """Refuses another model than the one the table is of.

        Raises:
            CalibrationError: It is another one.
        """
        if digest != self.model:
            raise CalibrationError(
                f"the calibration table is of {self.model_name} with digest {self.model[:_DIGEST_SHOWN]}, "
                f"{model_path} has digest {digest[:_DIGEST_SHOWN]}",
                f"make a table for this model: trtfleet calibrate {model_path} DATA",
            )

    def feed_differences(self, feed: Mapping[str, Any]) -> str:
        """What tells another feed from that of the table, in words; empty when nothing does."""
        theirs = json.loads(canonical(dict(feed)))
        found = []
        for name in sorted({*self.feed, *theirs}):
            wanted, there = theirs.get(name, ABSENT), self.feed.get(name, ABSENT)
            is_same = (name in self.feed) == (name in theirs) and canonical(wanted) == canonical(there)
            if not is_same:
                found.append((name, wanted, there))
        return in_words(found)

    def encode(self) -> bytes:
        """The table as UTF-8 JSON, one tensor a line."""
        head = {name: getattr(self, name) for name in sorted(_KINDS) if name != "tensors"}
        lines = [f'"format":{FORMAT}', *(f'"{name}":{_text(value)}' for name, value in head.items())]
        tensors = [f"{_text(name)}:{_text(tensor.as_json())}" for name, tensor in self.tensors.items()]
        lines.append('"tensors":{\n' + ",\n".join(tensors) + "\n}")
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Reads a table.

        Args:
            data: From anywhere.
            name: Of the file, for messages.

        Raises:
            CalibrationError: It is no table or a damaged one, or a later version of trtfleet wrote it.
        """
        try:
            version, values = _parse(data)
            if version == FORMAT:
                return cls._of(values)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise CalibrationError(
                f"{name} is no calibration table or a damaged one: {said}",
                "make it anew with `trtfleet calibrate`",
            ) from error
        raise CalibrationError(
            f"{name} has format {version}, this trtfleet reads format {FORMAT}", "upgrade trtfleet"
        )

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Self:
        if set(values) != set(_KINDS):
            raise ValueError(f"a table has the fields {', '.join(sorted(_KINDS))}")
        for name, kind in _KINDS.items():
            if type(values[name]) is not kind:
                raise ValueError(f"{name} cannot be {type(values[name]).__name__}")
        _check_method(values["method"])
        if not all(isinstance(text, str) for text in values["excluded"]):
            raise ValueError("excluded holds names")
        if len(values["tensors"]) > _MAX_TENSORS:
            raise ValueError(f"it has {len(values['tensors']):,} tensors, at most {_MAX_TENSORS:,} can be")
        tensors = {}
        for name, tensor in values.pop("tensors").items():
            try:
                tensors[name] = TensorRange.from_json(tensor)
            except (ValueError, TypeError) as error:
                raise ValueError(f"tensor {name[:80]!r}: {error}") from error
        return cls(**{**values, "excluded": tuple(values["excluded"])}, tensors=tensors)


def _text(value: Any) -> str:
    return canonical(list(value) if isinstance(value, tuple) else value).decode()


def _check_method(text: str) -> None:
    try:
        is_right = str(Method.parse(text)) == text
    except UsageError as error:
        raise ValueError(error.fact) from error
    if not is_right:
        raise ValueError(f"the method {text[:80]!r}")


def _parse(data: bytes) -> tuple[int, dict[str, Any]]:
    if len(data) > _MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes, a table has at most {_MAX_BYTES:,}")
    values = json.loads(data, parse_constant=_refuse_constant)
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    version = values.pop("format", None)
    if type(version) is not int or version < 1:
        raise ValueError(f"it has the format {version!r}"[:80])
    return version, values


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of a table")
