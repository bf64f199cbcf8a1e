"""A network ready to run: its segments in order, each as a TensorRT plan, as ONNX, or as both."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import ModelError

__all__ = ["NetworkProgram", "SegmentProgram", "plan_file", "read_order"]

_LAYOUT = 1
_INDEX = "program.json"


@dataclass(frozen=True, kw_only=True)
class SegmentProgram:
    """One segment.

    Attributes:
        kind: Which runtime executes it.
        inputs: Values it takes: inputs of the network, or outputs of earlier segments.
        outputs: Values it gives.
        onnx: Serialized ModelProto with these inputs and outputs.
        plan: TensorRT's plan of the same; None for a native segment.
    """

    kind: Literal["tensorrt", "native"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx: bytes = field(repr=False)
    plan: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.kind == "tensorrt") != (self.plan is not None):
            has = "has no" if self.plan is None else "has a"
            raise ModelError(f"a {self.kind} segment {has} plan", "build the engine again")


@dataclass(frozen=True, kw_only=True)
class NetworkProgram:
    """All segments of a network, in the order in which they run.

    Attributes:
        segments: At least one.
    """

    segments: tuple[SegmentProgram, ...]

    def to_files(self) -> dict[str, bytes]:
        """The program as files: ``program.json``, and ``segment-000.onnx`` and ``.plan`` for the segments."""
        files = {
            _INDEX: json.dumps(
                {
                    "layout": _LAYOUT,
                    "segments": [
                        {"kind": s.kind, "inputs": list(s.inputs), "outputs": list(s.outputs)}
                        for s in self.segments
                    ],
                },
                indent=2,
                sort_keys=True,
            ).encode()
        }
        for place, segment in enumerate(self.segments):
            files[_file(place, "onnx")] = segment.onnx
            if segment.plan is not None:
                files[_file(place, "plan")] = segment.plan
        return files

    @classmethod
    def from_files(cls, read: Callable[[str], bytes]) -> NetworkProgram:
        """Reads a program back.

        Args:
            read: Returns the content of a file of `to_files`, by its name.

        Raises:
            ModelError: The index is not one of this version, or malformed.
        """
        try:
            found = json.loads(read(_INDEX))
            layout = found["layout"]
            if layout != _LAYOUT:
                raise ModelError(
                    f"{_INDEX} has layout {layout}, this version reads {_LAYOUT}", "build the engine again"
                )
            segments = tuple(_segment(place, item, read) for place, item in enumerate(found["segments"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{_INDEX} is malformed: {type(error).__name__} {error}", "build the engine again"
            ) from error
        return cls(segments=segments)


def plan_file(place: int) -> str:
    """The name of a TensorRT segment's plan among the files of a program."""
    return _file(place, "plan")


def _file(place: int, ending: str) -> str:
    return f"segment-{place:03}.{ending}"


def _segment(place: int, item: Any, read: Callable[[str], bytes]) -> SegmentProgram:
    kind = item["kind"]
    if kind not in ("tensorrt", "native"):
        raise ValueError(f"kind {kind!r} is unknown")
    return SegmentProgram(
        kind=kind,
        inputs=tuple(map(str, item["inputs"])),
        outputs=tuple(map(str, item["outputs"])),
        onnx=read(_file(place, "onnx")),
        plan=read(_file(place, "plan")) if kind == "tensorrt" else None,
    )


def read_order(
    segments: Sequence[SegmentProgram], inputs: Sequence[str], outputs: Sequence[str]
) -> list[tuple[str, ...]]:
    """Checks that every value is there when it is read, and finds where each one is read last.

    Args:
        segments: In order.
        inputs: Values that are there from the start.
        outputs: Values that must be there at the end.

    Returns:
        For each segment the values that nobody reads after it, those it makes for nobody included.

    Raises:
        ModelError: A value is read or asked for and never made, or made twice.
    """
    known = set(inputs)
    last: dict[str, int] = {}
    for place, segment in enumerate(segments):
        missing = sorted(set(segment.inputs) - known)
        if missing:
            raise ModelError(
                f"segment {place} reads {missing[0]!r}, which nothing before it makes",
                "build the engine again",
            )
        doubled = sorted(set(segment.outputs) & known)
        if doubled:
            raise ModelError(f"segment {place} makes {doubled[0]!r} once more", "build the engine again")
        known |= set(segment.outputs)
        last |= dict.fromkeys((*segment.inputs, *segment.outputs), place)
    unmade = sorted(set(outputs) - known)
    if unmade:
        raise ModelError(f"no segment makes the output {unmade[0]!r}", "build the engine again")
    kept = set(outputs)
    return [
        tuple(name for name, where in last.items() if where == place and name not in kept)
        for place in range(len(segments))
    ]
