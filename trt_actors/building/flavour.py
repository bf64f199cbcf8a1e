"""TensorRT or TensorRT-RTX, whichever is installed: the one place that imports either."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from ...errors import BackendError

__all__ = ["FLAVOURS", "Flavour", "find_flavour", "installed_flavours", "why_missing"]

FlavourName = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Names of the flavours and of their Python modules, in order of preference."""

_OLDEST = (10, 12)
_CHOICE = "TRTFLEET_TENSORRT"


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """One installed flavour of TensorRT.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        version: Its full version, e.g. ``10.13.3.9``.
        api: The Python module; both flavours have the same interface.
    """

    name: str
    version: str
    api: Any

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def why_missing(name: str) -> str | None:
    """Why a flavour cannot be used in this process, or None when it can."""
    try:
        _load(name)
    except BackendError as error:
        return error.fact
    return None


def installed_flavours() -> list[Flavour]:
    """The flavours that can be used in this process, the preferred one first."""
    return [_load(name) for name in FLAVOURS if why_missing(name) is None]


def find_flavour(name: str | None = None) -> Flavour:
    """The flavour to use: the one named, else the one that TRTFLEET_TENSORRT names, else the first installed.

    Raises:
        BackendError: It is not installed or too old; the message says what was found.
    """
    wanted = name or os.environ.get(_CHOICE) or None
    if wanted is not None:
        if wanted not in FLAVOURS:
            raise BackendError(
                f"TensorRT flavour {wanted!r} is unknown", f"set {_CHOICE} to one of {', '.join(FLAVOURS)}"
            )
        return _load(wanted)
    reasons = []
    for candidate in FLAVOURS:
        try:
            return _load(candidate)
        except BackendError as error:
            reasons.append(error.fact)
    raise BackendError("; ".join(reasons), "pip install 'trtfleet[rtx]' or 'trtfleet[gpu]'")


def _load(name: str) -> Flavour:
    module = FLAVOURS[name]
    try:
        api: ModuleType = importlib.import_module(module)
    except ImportError as error:
        text = " ".join(str(error).split())
        what = f"{name} is not installed" if isinstance(error, ModuleNotFoundError) else f"{name}: {text}"
        raise BackendError(what, f"pip install {name}") from error
    except Exception as error:
        # TensorRT raises what its loader raises: RuntimeError, OSError, even FileNotFoundError.
        raise BackendError(f"{name} does not load: {error}", "check the driver and CUDA libraries") from error
    version = str(api.__version__)
    if name == "tensorrt" and tuple(map(int, version.split(".")[:2])) < _OLDEST:
        raise BackendError(
            f"tensorrt {version} is too old, trtfleet needs {'.'.join(map(str, _OLDEST))} or newer",
            "upgrade the tensorrt package",
        )
    return Flavour(name=name, version=version, api=api)
