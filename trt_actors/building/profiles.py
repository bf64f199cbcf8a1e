"""The shapes that each segment is built for: the user's profiles, and what the network itself implies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from ...errors import UsageError
from ..partition.network import Network
from ..partition.partition import Partition, Segment
from ..partition.types import sizes, with_free_dims
from ..reference import compute
from .made_up import made_up_input
from .options import BuildOptions, Profile

__all__ = ["ShapeBook", "input_profiles"]

_SLACK = 4
_LEAST_FREE = 1024


def input_profiles(model: onnx.ModelProto, options: BuildOptions) -> tuple[Profile, ...]:
    """Profiles of the model's own inputs with free dimensions.

    A free first dimension of an input is the batch: 1 to ``max_batch_size``. Any other needs the user's word.

    Raises:
        UsageError: An input has other free dimensions and no profile, a profile does not fit its input, or
            allows larger batches than ``max_batch_size``.
    """
    fed = Network(model).inputs
    inputs = {value.name: value.type for value in model.graph.input if value.name in fed}
    for profile in options.profiles:
        if profile.name in inputs:
            _check(profile, inputs[profile.name], options)
    found = []
    for name, type_ in inputs.items():
        free = with_free_dims(type_)
        given = options.profile(name)
        if given is not None:
            found.append(given)
        elif free and free != [0]:
            others = [_dim_name(type_, axis) for axis in free if axis]
            raise UsageError(
                f"input {name!r} has free dimensions besides the batch: {', '.join(others)}",
                f"say which sizes they have: --profile {name}={_example(type_, options)}",
            )
        elif free:
            shape = sizes(type_, 1) or ()
            largest = (options.max_batch_size, *shape[1:])
            found.append(Profile(name=name, min=shape, opt=largest, max=largest))
    return tuple(found)


def _check(profile: Profile, type_: onnx.TypeProto, options: BuildOptions) -> None:
    declared = type_.tensor_type.shape.dim
    if len(declared) != len(profile.max):
        raise UsageError(
            f"profile {profile} has rank {len(profile.max)}, the input has rank {len(declared)}",
            "give every dimension, the batch first",
        )
    for axis, dim in enumerate(declared):
        fixed = dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
        if fixed is not None and (profile.min[axis], profile.max[axis]) != (fixed, fixed):
            raise UsageError(
                f"profile {profile} varies dimension {axis}, which the model fixes at {fixed}",
                "repeat that size in all three shapes",
            )
    if with_free_dims(type_)[:1] == [0] and profile.max and profile.max[0] < options.max_batch_size:
        raise UsageError(
            f"profile {profile} ends at batch {profile.max[0]}, max_batch_size is {options.max_batch_size}",
            "let both agree: --max-batch-size, or the first dimension of MAX",
        )


def _dim_name(type_: onnx.TypeProto, axis: int) -> str:
    return f"{axis} ({type_.tensor_type.shape.dim[axis].dim_param or 'unnamed'})"


def _example(type_: onnx.TypeProto, options: BuildOptions) -> str:
    shapes = []
    for size, batch in ((32, 1), (64, options.max_batch_size), (128, options.max_batch_size)):
        shape = list(sizes(type_, size) or ())
        if with_free_dims(type_)[:1] == [0]:
            shape[0] = batch
        shapes.append("x".join(map(str, shape)))
    return ",".join(shapes)


@dataclass
class ShapeBook:
    """Ranges of the values that pass between segments.

    A free dimension between segments is the batch where it carries the batch's name or grows with it, and
    otherwise depends on the data (how many boxes were found). Its range is then taken from a run of the
    network on made-up input, with slack; at run time a shape outside of it is left to the native runtime.

    Args:
        partition: Whose values.
        inputs: Profiles of the model's inputs.
        options: The user's profiles may name inner values as well.
    """

    partition: Partition
    inputs: Sequence[Profile]
    options: BuildOptions
    _seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None

    def of(self, segment: Segment) -> tuple[Profile, ...]:
        """Profiles of a segment's inputs that have free dimensions.

        Raises:
            ModelError: The network had to be run to know a range, and fails.
        """
        known = {profile.name: profile for profile in self.inputs}
        found = []
        for name in segment.inputs:
            type_, given = self.partition.types[name], self.options.profile(name)
            if name in known:
                found.append(known[name])
            elif given is not None:
                found.append(given)
            elif with_free_dims(type_) or not type_.tensor_type.HasField("shape"):
                found.append(self._implied(name, type_))
        return tuple(found)

    def _implied(self, name: str, type_: onnx.TypeProto) -> Profile:
        free = with_free_dims(type_)
        names = {type_.tensor_type.shape.dim[axis].dim_param for axis in free}
        batch = self._batch_names()
        if type_.tensor_type.HasField("shape") and names <= batch:
            low, high = (sizes(type_, self._range(batch_end)) or () for batch_end in (False, True))
            return Profile(name=name, min=low, opt=high, max=high)
        small, large = self._observed()[name]
        low_dims, usual, high_dims = [], [], []
        for axis, (one, two) in enumerate(zip(small, large, strict=True)):
            if axis not in free and type_.tensor_type.HasField("shape"):
                size = one
                low_dims.append(size)
                usual.append(size)
                high_dims.append(size)
                continue
            is_batch = axis == 0 and one != two and self._batch_end() > 1
            most = one * self._batch_end() if is_batch else max(_LEAST_FREE, _SLACK * max(one, two))
            low_dims.append(1)
            usual.append(max(1, two))
            high_dims.append(most)
        return Profile(name=name, min=tuple(low_dims), opt=tuple(usual), max=tuple(high_dims))

    def _batch_names(self) -> set[str]:
        names = set()
        for profile in self.inputs:
            type_ = self.partition.types[profile.name]
            if with_free_dims(type_)[:1] == [0] and type_.tensor_type.shape.dim[0].dim_param:
                names.add(type_.tensor_type.shape.dim[0].dim_param)
        return names

    def _batch_end(self) -> int:
        return max((profile.max[0] for profile in self.inputs if profile.max), default=1)

    def _range(self, end: bool) -> Mapping[str, int]:
        size = self._batch_end() if end else 1
        return dict.fromkeys(self._batch_names(), size)

    def _observed(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Shapes of all values between segments, at the smallest input and at the usual one with batch 2."""
        if self._seen is None:
            names = sorted({name for segment in self.partition.segments for name in segment.inputs})
            model = self.partition.cleaned
            inner = [name for name in names if name not in Network(model).inputs]
            runs = []
            # Without a free dimension both runs would be the same.
            for is_large in (False, True) if self.inputs else (False,):
                found = compute(model, made_up_input(model, self.inputs, is_large=is_large), inner)
                runs.append({name: tuple(value.shape) for name, value in found.items()})
            self._seen = {name: (runs[0][name], runs[-1][name]) for name in inner}
        return self._seen
