"""What an engine is built for: precision, shapes and limits, in Paddle-TensorRT's words where it has them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...errors import UsageError

__all__ = ["HARDWARE_LEVELS", "PRECISIONS", "BuildOptions", "HardwareLevel", "Precision", "Profile"]

Precision = Literal["fp32", "fp16", "int8"]
HardwareLevel = Literal["none", "ampere-plus", "same-compute-capability"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
HARDWARE_LEVELS: tuple[str, ...] = get_args(HardwareLevel)

_SHAPE = re.compile(r"\d+(x\d+)*")
_MOST_LEVEL = 5


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The shapes that one input may have, batch dimension first.

    Attributes:
        name: The input, or a value between two segments.
        min: The smallest shape.
        opt: The shape that kernels are chosen for.
        max: The largest shape.
    """

    name: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = {"min": self.min, "opt": self.opt, "max": self.max}
        if len({len(shape) for shape in shapes.values()}) > 1:
            raise UsageError(
                f"the shapes of profile {self} have different ranks", "give three shapes of the input's rank"
            )
        for low, high in (("min", "opt"), ("opt", "max")):
            if any(a > b for a, b in zip(shapes[low], shapes[high], strict=True)):
                raise UsageError(
                    f"profile {self} has {low} > {high}", "write NAME=MIN,OPT,MAX with rising dimensions"
                )

    def __str__(self) -> str:
        return f"{self.name}={','.join('x'.join(map(str, s)) for s in (self.min, self.opt, self.max))}"

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Reads ``NAME=MIN,OPT,MAX``, each shape as ``8x3x224x224``; the name may contain ``=``.

        Raises:
            UsageError: The text is malformed, or its shapes do not rise.
        """
        name, _, shapes = text.rpartition("=")
        parts = shapes.split(",")
        if not name or len(parts) != 3 or not all(map(_SHAPE.fullmatch, parts)):
            raise UsageError(
                f"profile {text!r} is malformed",
                "write NAME=MIN,OPT,MAX, e.g. image=1x3x224x224,8x...,32x...",
            )
        low, usual, high = (tuple(map(int, part.split("x"))) for part in parts)
        return cls(name=name, min=low, opt=usual, max=high)

    @property
    def largest_elements(self) -> int:
        """Elements of the largest shape."""
        return math.prod(self.max)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Everything that a user can ask of a build; part of the engine's identity.

    Attributes:
        precision: ``fp32``, ``fp16``, or ``int8`` (the model carries Q/DQ nodes).
        max_batch_size: The largest batch that engines accept.
        workspace_size: Bytes of device memory that kernels may use beside their tensors; None leaves it to
            TensorRT.
        min_subgraph_size: Segments with fewer nodes stay with the native runtime.
        profiles: Shapes of inputs whose free dimensions are more than the batch.
        optimization_level: 0 to 5, TensorRT's builder optimization level; None leaves it to TensorRT.
        version_compatible: Whether plans load under later minor versions of TensorRT.
        hardware_compatible: On which other GPUs plans load.
        exclude_ops: Operator types that stay with the native runtime.
    """

    precision: Precision = "fp32"
    max_batch_size: int = 64
    workspace_size: int | None = None
    min_subgraph_size: int = 3
    profiles: tuple[Profile, ...] = ()
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareLevel = "none"
    exclude_ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"precision {self.precision!r} is unknown", f"choose one of {', '.join(PRECISIONS)}"
            )
        if self.hardware_compatible not in HARDWARE_LEVELS:
            raise UsageError(
                f"hardware compatibility {self.hardware_compatible!r} is unknown",
                f"choose one of {', '.join(HARDWARE_LEVELS)}",
            )
        for name, least in (("max_batch_size", 1), ("min_subgraph_size", 1), ("workspace_size", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be >= {least}, got {value}", "choose a larger number")
        level = self.optimization_level
        if level is not None and not 0 <= level <= _MOST_LEVEL:
            raise UsageError(
                f"optimization_level must be 0 to {_MOST_LEVEL}, got {level}", "0 builds fastest"
            )
        doubled = _first_double([profile.name for profile in self.profiles])
        if doubled:
            raise UsageError(f"input {doubled!r} has two profiles", "give one --profile an input")

    def profile(self, name: str) -> Profile | None:
        """The profile that the user gave for a value, or None."""
        return next((profile for profile in self.profiles if profile.name == name), None)

    def as_identity(self) -> dict[str, Any]:
        """The options as plain values, the same for the same options."""
        return {
            "precision": self.precision,
            "max_batch_size": self.max_batch_size,
            "workspace_size": self.workspace_size,
            "min_subgraph_size": self.min_subgraph_size,
            "profiles": sorted(map(str, self.profiles)),
            "optimization_level": self.optimization_level,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "exclude_ops": sorted(set(self.exclude_ops)),
        }


def _first_double(names: Sequence[str]) -> str | None:
    return next((name for number, name in enumerate(names) if name in names[:number]), None)
