"""Runs one TensorRT plan on device memory: profiles by batch, CUDA graphs, outputs of unknown size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...errors import BackendError, ModelError
from ..building.flavour import Flavour
from ..building.log import MessageLog
from .context import Context, ExecutionError
from .device import Device, Stream
from .memory import Pool
from .recorded import Bucket, RecordedRuns
from .settings import RuntimeSettings
from .tensors import OutsideProfile, PlanTensors
from .validity import refusal
from .values import DeviceArray, Place, Value, release, to_host

__all__ = ["ExecutionError", "OutsideProfile", "PlanRunner"]


class PlanRunner:
    """One plan, deserialized, with a context for each profile in use.

    The device's context must be current in every call, the constructor's included. All work goes to one
    stream, so that contexts and memory are never used by two executions at once.

    Args:
        plan: Its bytes. Deserializing executes native code: the caller has verified their digest.
        flavour: What built it.
        inputs: Names of the values that will be given.
        outputs: Names of the values that are wanted.
        device: Open.
        stream: Where executions go.
        pool: Where memory comes from.
        use_graphs: Whether to capture executions as CUDA graphs; worth it when addresses repeat.

    Raises:
        BackendError: TensorRT refuses the plan on this machine.
        ModelError: The plan's inputs and outputs are not those.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        flavour: Flavour,
        inputs: Sequence[str],
        outputs: Sequence[str],
        device: Device,
        stream: Stream,
        pool: Pool,
        use_graphs: bool = False,
    ) -> None:
        self._api = flavour.api
        self._device = device
        self._stream = stream
        self._pool = pool
        self._log = MessageLog.over(self._api)
        self._runtime: Any = self._api.Runtime(self._log)
        self._engine: Any = _deserialized(self._runtime, flavour, plan, self._log)
        self._settings = RuntimeSettings(self._api, self._engine)
        self._tensors = PlanTensors.read(self._engine, self._api)
        self._check_names(inputs, outputs)
        self._contexts: dict[int, Context] = {}
        is_in_memory = not self._tensors.on_host
        self.recorded = (
            RecordedRuns(partial(self._context, is_captured=True), stream, device)
            if use_graphs and is_in_memory
            else None
        )

    def _check_names(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        # TensorRT drops inputs that nothing depends on.
        extra = sorted(set(self._tensors.inputs) - set(inputs))
        if extra or set(self._tensors.outputs) != set(outputs):
            takes, gives = ", ".join(self._tensors.inputs), ", ".join(self._tensors.outputs)
            raise ModelError(
                f"the plan takes {takes} and gives {gives}, "
                f"expected {', '.join(inputs)} and {', '.join(outputs)}",
                "build the engine again",
            )

    def _context(self, profile: int, *, is_captured: bool = False) -> Context:
        inner = self._settings.make_context(is_captured=is_captured)
        if inner is None:
            # TensorRT reports what it is short of in words only, and most often it is memory.
            words = self._log.why() or "no reason was given"
            raise BackendError(
                f"TensorRT makes no execution context: {words}", "a smaller max_batch_size needs less memory"
            )
        return Context(
            self._api,
            inner,
            tensors=self._tensors,
            profile=profile,
            stream=self._stream,
            pool=self._pool,
            log=self._log,
        )

    def run(self, values: Mapping[str, Value], place: Place) -> dict[str, Value]:
        """Adds the plan's execution to the stream.

        Args:
            values: The inputs; they must stay until the execution is done.
            place: Finds memory for outputs whose shape is known beforehand.

        Returns:
            The outputs, on the device but for those that TensorRT keeps in host memory.

        Raises:
            OutsideProfile: No profile admits the shapes; nothing was executed.
            ExecutionError: TensorRT refuses the batch.
            MemoryError: The device has no memory left.
        """
        borrowed: list[DeviceArray] = []
        try:
            arrays, hosts = self._split(values, borrowed)
            shapes = {name: values[name].shape for name in self._tensors.inputs}
            profile = self._tensors.profile_of(shapes, hosts)
            bucket = self.recorded.bucket(profile, shapes) if self.recorded else None
            context = bucket.context if bucket else self._plain(profile)
            if bucket is None:
                context.prepare(shapes, hosts)
            pointers = {name: array.pointer for name, array in arrays.items()}
            return self._executed(context, bucket, pointers, place)
        finally:
            for array in borrowed:
                release(array)

    def _split(
        self, values: Mapping[str, Value], borrowed: list[DeviceArray]
    ) -> tuple[dict[str, DeviceArray], dict[str, np.ndarray]]:
        """Puts every input where TensorRT wants it; ``borrowed`` receives what must be given back."""
        arrays: dict[str, DeviceArray] = {}
        hosts: dict[str, np.ndarray] = {}
        for name in self._tensors.inputs:
            value, dtype = values[name], self._tensors.dtypes[name]
            if value.dtype != dtype:
                raise ModelError(
                    f"the plan takes {name} as {dtype}, it is {value.dtype}", "build the engine again"
                )
            if name in self._tensors.on_host:
                hosts[name] = to_host(value, self._device, self._stream)
            elif isinstance(value, DeviceArray):
                arrays[name] = value
            else:
                arrays[name] = self._pool.array(value.shape, value.dtype)
                borrowed.append(arrays[name])
                self._device.upload(arrays[name].pointer, np.ascontiguousarray(value), self._stream)
        return arrays, hosts

    def _plain(self, profile: int) -> Context:
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._context(profile)
        return context

    def _executed(
        self, context: Context, bucket: Bucket | None, pointers: dict[str, int], place: Place
    ) -> dict[str, Value]:
        made: dict[str, Value] = {}
        on_host = self._tensors.on_host
        try:
            for name, shape in context.output_shapes.items():
                if shape is None:
                    continue
                dtype = self._tensors.dtypes[name]
                value: Value = np.empty(shape, dtype) if name in on_host else place(name, shape, dtype)
                made[name] = value
                pointers[name] = value.pointer if isinstance(value, DeviceArray) else value.ctypes.data
            if bucket is not None:
                bucket.execute(pointers, self._stream, self._device)
            else:
                context.address(pointers)
                context.execute()
            made.update(context.collect())
            if on_host.intersection(made):
                self._stream.synchronize()
        except BaseException:
            for value in made.values():
                release(value)
            context.discard()
            raise
        return made

    def close(self) -> None:
        """Destroys contexts, engine and runtime; harmless when repeated. No execution may be under way."""
        if self.recorded is not None:
            self.recorded.close()
        while self._contexts:
            self._contexts.popitem()[1].close()
        # In this order: each needs the one before it only while it goes.
        self._settings.close()
        self._engine = None
        self._runtime = None


def _deserialized(runtime: Any, flavour: Flavour, plan: bytes, log: Any) -> Any:
    refused = refusal(runtime, flavour, plan, log)
    engine = None if refused else runtime.deserialize_cuda_engine(plan)
    if engine is None:
        words = log.why() or "no reason was given"
        raise BackendError(
            refused or f"{flavour} does not load the plan: {words}",
            "build it again on this machine, or choose --backend auto",
        )
    return engine
