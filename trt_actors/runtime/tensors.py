"""What a plan says of its own inputs and outputs, and which of its profiles fits a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from onnx import TensorProto, helper

from ...errors import ModelError

__all__ = ["OutsideProfile", "PlanTensors", "Range", "Shapes"]

Shapes = Mapping[str, tuple[int, ...]]

_DTYPES: dict[str, np.dtype] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "BF16": np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class OutsideProfile(Exception):  # noqa: N818 - it asks for another way rather than reports a failure
    """No profile of the plan admits these shapes: the segment must run another way."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """From where to where the sizes of one input may lie, or its values when it is a shape itself.

    Attributes:
        min: The least of each.
        max: The most of each.
    """

    min: tuple[int, ...]
    max: tuple[int, ...]

    def admits(self, sizes: tuple[int, ...]) -> bool:
        """Whether all sizes lie within."""
        return len(sizes) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, sizes, self.max, strict=True)
        )

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.min))}..{'x'.join(map(str, self.max))}"


@dataclass(frozen=True, kw_only=True)
class PlanTensors:
    """Inputs and outputs of a plan.

    Attributes:
        inputs: Names.
        outputs: Names.
        dtypes: Element types by name.
        on_host: Those that TensorRT reads or writes in host memory: shapes.
        shapes: For each profile the range of every input's shape.
        values: For each profile the range of the values of inputs that are shapes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, np.dtype]
    on_host: frozenset[str]
    shapes: tuple[Mapping[str, Range], ...]
    values: tuple[Mapping[str, Range], ...]

    @classmethod
    def read(cls, engine: Any, api: Any) -> Self:
        """Asks an engine.

        Raises:
            ModelError: A tensor has an element type that arrays cannot have.
        """
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT]
        profiles = range(max(engine.num_optimization_profiles, 1))
        shaping = [name for name in inputs if engine.is_shape_inference_io(name)]
        return cls(
            inputs=tuple(inputs),
            outputs=tuple(name for name in names if name not in inputs),
            dtypes={name: _dtype(name, engine.get_tensor_dtype(name)) for name in names},
            on_host=frozenset(
                name for name in names if engine.get_tensor_location(name) == api.TensorLocation.HOST
            ),
            shapes=tuple(
                {name: _shape_range(engine, name, profile) for name in inputs} for profile in profiles
            ),
            values=tuple(
                {name: _value_range(engine, name, profile) for name in shaping} for profile in profiles
            ),
        )

    def profile_of(self, shapes: Shapes, values: Mapping[str, np.ndarray]) -> int:
        """The profile for a batch: of those that admit it, the one with the smallest largest shapes.

        Args:
            shapes: Of every input.
            values: Of the inputs in host memory.

        Raises:
            OutsideProfile: None does; the message names an input and the ranges.
        """
        fitting = [
            profile
            for profile, ranges in enumerate(self.shapes)
            if all(ranges[name].admits(shapes[name]) for name in self.inputs)
            and all(
                self.values[profile][name].admits(tuple(map(int, array.ravel())))
                for name, array in values.items()
                if name in self.values[profile]
            )
        ]
        if not fitting:
            raise OutsideProfile(self._why_outside(shapes))
        return min(fitting, key=lambda profile: sum(math.prod(r.max) for r in self.shapes[profile].values()))

    def _why_outside(self, shapes: Shapes) -> str:
        for name in self.inputs:
            ranges = [profile[name] for profile in self.shapes]
            if not any(each.admits(shapes[name]) for each in ranges):
                shape = "x".join(map(str, shapes[name])) or "a scalar"
                return f"{name} is {shape}, the plan's profiles take {', '.join(map(str, ranges))}"
        return "no single profile of the plan takes all inputs together"


def _dtype(name: str, dtype: Any) -> np.dtype:
    found: np.dtype | None = _DTYPES.get(dtype.name)
    if found is None:
        raise ModelError(
            f"{name} has TensorRT's element type {dtype.name}, which no array has",
            "cast it inside the model",
        )
    return found


def _shape_range(engine: Any, name: str, profile: int) -> Range:
    fixed = tuple(engine.get_tensor_shape(name))
    if all(size >= 0 for size in fixed):
        return Range(min=fixed, max=fixed)
    low, _, high = engine.get_tensor_profile_shape(name, profile)
    return Range(min=tuple(low), max=tuple(high))


def _value_range(engine: Any, name: str, profile: int) -> Range:
    low, _, high = engine.get_tensor_profile_values(profile, name)
    return Range(min=tuple(low), max=tuple(high))
