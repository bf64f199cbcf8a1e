"""One network that runs batches from host memory: as a scoring job would, or returning inner tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from ...datasets.signature import TensorSpec
from ...datasets.storage import one_line
from ...errors import BackendError, MismatchError, ModelError, TrtfleetError
from ..backends import open_engine
from ..calibration.observer import counted_elements, filled
from ..calibration.session import CPU, CUDA, open_session
from ..onnxruntime_engine import cuda_missing
from ..prepared import Prepared
from ..task import TensorRTSettings

__all__ = ["EngineRunner", "Ran", "Runner", "SessionRunner", "match_inputs"]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a network made of a batch; arrays are valid until its next batch.

    Attributes:
        outputs: (rows, ...) by name.
        tensors: Inner tensors, flat, by name: the values that count of each.
    """

    outputs: Mapping[str, np.ndarray]
    tensors: Mapping[str, np.ndarray]


class Runner(Protocol):
    """A network ready to run; not thread-safe.

    Attributes:
        backend: What executes.
        not_taken: Why a better backend was not taken; empty when it was.
    """

    backend: str
    not_taken: str

    def run(self, arrays: Mapping[str, np.ndarray]) -> Ran:
        """Runs a batch.

        Args:
            arrays: (rows, ...) by input, rows at least 1; only read.

        Raises:
            ModelError: The network does not run on it.
        """

    def close(self) -> None:
        """Releases what it holds; harmless when repeated."""


def match_inputs(a: Sequence[TensorSpec], b: Sequence[TensorSpec]) -> dict[str, str]:
    """The second network's input for each of the first one's: of the same name, else in the same place.

    Raises:
        MismatchError: They cannot be fed alike.
    """
    names = {spec.name for spec in b}
    others = list(b)
    if {spec.name for spec in a} == names:
        by_name = {spec.name: spec for spec in b}
        others = [by_name[spec.name] for spec in a]
    is_same = len(a) == len(b) and all(
        one.dtype == other.dtype and _fits(one.row_shape, other.row_shape)
        for one, other in zip(a, others, strict=True)
    )
    if not is_same:
        raise MismatchError(
            f"the models cannot be fed alike: one takes {', '.join(map(str, a))}; the other "
            f"{', '.join(map(str, b))}",
            "compare models with the same inputs",
        )
    return {one.name: other.name for one, other in zip(a, others, strict=True)}


def _fits(one: Sequence[int | str], other: Sequence[int | str]) -> bool:
    return len(one) == len(other) and all(
        isinstance(x, str) or isinstance(y, str) or x == y for x, y in zip(one, other, strict=True)
    )


class _Closing:
    """The context manager's part of a runner."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineRunner(_Closing):
    """The engine that a scoring job would run, on one CPU thread where the CPU computes.

    How several threads divide an operator's work could decide in which order numbers are added.

    Args:
        backend: ``auto`` or one backend's name.
        network: What to run.
        settings: How TensorRT engines are built.

    Raises:
        TrtfleetError: The network cannot be loaded there.
    """

    def __init__(self, backend: str, network: Prepared, settings: TensorRTSettings) -> None:
        self._engine, self.not_taken = open_engine(backend, network, settings=settings, threads=1)
        self._slot = self._engine.slot()
        self.backend = self._engine.backend

    def run(self, arrays: Mapping[str, np.ndarray]) -> Ran:
        """Runs a batch; see ``Runner.run``."""
        rows = len(next(iter(arrays.values())))
        try:
            for name, array in arrays.items():
                self._slot.bind(name, np.ascontiguousarray(array))
            self._engine.enqueue(self._slot, rows)
            self._engine.wait(self._slot)
        except TrtfleetError:
            raise
        except Exception as error:
            raise _does_not_run(error) from error
        return Ran(outputs=self._slot.outputs, tensors={})

    def close(self) -> None:
        """Releases the device."""
        self._engine.close()


class SessionRunner(_Closing):
    """ONNX Runtime, whose results depend on the batch alone; it also returns inner tensors.

    Args:
        backend: ``auto``, ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
        network: What to run; ``tensors`` are among its model's outputs.
        tensors: Names of inner tensors to return.

    Raises:
        BackendError: CUDA was asked for and is not available.
        ModelError: The network cannot be loaded.
    """

    def __init__(self, backend: str, network: Prepared, tensors: Sequence[str] = ()) -> None:
        self._names = [spec.name for spec in network.outputs]
        self._tensors = [name for name in tensors if name not in self._names]
        self._wanted = tuple(tensors)
        self._fixed = network.inputs[0].batch
        self._session, self.backend, self.not_taken = _open(backend, network)

    def run(self, arrays: Mapping[str, np.ndarray]) -> Ran:
        """Runs a batch; see ``Runner.run``."""
        feeds, rows, batch = filled(arrays, self._fixed)
        names = [*self._names, *self._tensors]
        try:
            found = dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:
            raise _does_not_run(error) from error
        return Ran(
            outputs={name: found[name][:rows] for name in self._names},
            tensors={
                name: found[name].reshape(-1)[: counted_elements(found[name].shape, rows, batch)]
                for name in self._wanted
            },
        )

    def close(self) -> None:
        """Drops the session."""
        self._session = None


def _open(backend: str, network: Prepared) -> tuple[Any, str, str]:
    reason = ""
    if backend == "onnxruntime-cuda" or (backend == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES")):
        missing = cuda_missing()
        if missing is None:
            session = open_session(network, [CUDA, CPU])
            if CUDA in session.get_providers():
                return session, "onnxruntime-cuda", ""
            missing = "the CUDA provider did not load"
        if backend != "auto":
            raise BackendError(f"{backend} is not available: {missing}", "choose --backend auto")
        reason = f"onnxruntime-cuda: {missing}"
    return open_session(network, [CPU]), "onnxruntime-cpu", reason


def _does_not_run(error: Exception) -> ModelError:
    return ModelError(
        f"the network does not run on a batch: {one_line(error)}", "does it run in onnxruntime by itself?"
    )
