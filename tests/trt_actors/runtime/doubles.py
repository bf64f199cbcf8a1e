"""TensorRT's runtime as far as it is used, on ONNX Runtime; tests/contract checks its interface.

A plan of the double is a JSON header, a zero byte and the ONNX of the segment. Where the real library would
be undefined, the double asserts; where it returns False or None and logs, so does the double.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper, shape_inference
from trtfleet.errors import BackendError
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.trt_actors.building.flavour import Flavour

Shape = tuple[int, ...]


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class EngineValidity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class DataType(IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


_DATA_TYPES = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT8: DataType.INT8,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.UINT8: DataType.UINT8,
    onnx.TensorProto.BOOL: DataType.BOOL,
}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IOutputAllocator:
    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int | None:
        raise NotImplementedError

    def reallocate_output_async(
        self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
    ) -> int | None:
        raise NotImplementedError

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        raise NotImplementedError


class TensorRTDouble:
    """What stands for the module ``tensorrt_rtx``.

    Args:
        device: Whose streams and memory its plans run on.
        refuses: What ``get_engine_validity`` says against every plan; 0 for nothing.
        fails: Batches with this value anywhere in an input are refused by ``execute_async_v3``.
        faults: Batches with this value make the device fail while it executes.
    """

    def __init__(
        self,
        device: DeviceDouble,
        *,
        refuses: int = 0,
        fails: float | None = None,
        faults: float | None = None,
    ) -> None:
        self.device = device
        self.refuses = refuses
        self.fails = fails
        self.faults = faults
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.contexts = 0
        self.executions = 0
        self.can_capture = True
        self.__version__ = "1.7.1.116"

    ILogger = ILogger
    IOutputAllocator = IOutputAllocator
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    EngineValidity = EngineValidity
    EngineInvalidityDiagnostics = EngineInvalidityDiagnostics
    DataType = DataType
    DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802 - a class of the real module
        return Runtime(self, logger)

    @property
    def flavour(self) -> Flavour:
        """The double as an installed flavour."""
        return Flavour(name="tensorrt-rtx", version=self.__version__, api=self)


class _Counted:
    def __init__(self, api: TensorRTDouble, logger: Any) -> None:
        self._api = api
        self._logger = logger
        api.alive.add(self)

    def _refuse(self, why: str) -> bool:
        self._logger.log(ILogger.ERROR, why)
        return False


def double_plan(
    model: onnx.ModelProto,
    profiles: Sequence[Mapping[str, tuple[Shape, Shape, Shape]]] = ({},),
    *,
    values: Mapping[str, tuple[Shape, Shape, Shape]] | None = None,
    on_host: Sequence[str] = (),
) -> bytes:
    """A plan of the double.

    Args:
        model: The segment.
        profiles: For each profile the least, usual and largest shape of inputs; others have fixed shapes.
        values: Inputs that are shapes, with the range of their values.
        on_host: Tensors in host memory; inputs in ``values`` are anyway.
    """
    values = values or {}
    header = {"profiles": list(profiles), "values": values, "on_host": [*on_host, *values]}
    return json.dumps(header).encode() + b"\0" + model.SerializeToString()


class Runtime(_Counted):
    def __init__(self, api: TensorRTDouble, logger: Any) -> None:
        assert isinstance(logger, ILogger)
        super().__init__(api, logger)

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        if self._api.refuses:
            self._refuse("the double refuses")
            return EngineValidity.INVALID, self._api.refuses
        return EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        assert not self._api.refuses, "deserialized although it was refused"
        header, zero, model = serialized_engine.partition(b"\0")
        if not zero or not header.startswith(b"{"):
            self._refuse("the plan is malformed")
            return None
        return ICudaEngine(self._api, self._logger, json.loads(header), onnx.load_from_string(model))


class ICudaEngine(_Counted):
    def __init__(self, api: TensorRTDouble, logger: Any, header: Any, model: onnx.ModelProto) -> None:
        super().__init__(api, logger)
        self._header = header
        self._on_host = set(header["on_host"])
        self.model = model
        graph = model.graph
        self._inputs = {value.name: value.type.tensor_type for value in graph.input}
        self._outputs = {value.name: value.type.tensor_type for value in graph.output}
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._header["profiles"])

    def _type(self, name: str) -> Any:
        return self._inputs.get(name) or self._outputs[name]

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _DATA_TYPES[self._type(name).elem_type]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._on_host else TensorLocation.DEVICE

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self._header["values"]

    def get_tensor_shape(self, name: str) -> Shape:
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in self._type(name).shape.dim)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        return [tuple(shape) for shape in self._header["profiles"][profile_index][name]]

    # The bindings' own documentation has these two names the other way round.
    def get_tensor_profile_values(self, profile_index: int, name: str) -> list[list[int]]:
        assert isinstance(profile_index, int)
        return [list(values) for values in self._header["values"][name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self._api, self._logger)

    def create_execution_context(self, runtime_config: Any = None) -> IExecutionContext:
        self._api.contexts += 1
        return IExecutionContext(self._api, self._logger, self)


class IRuntimeConfig(_Counted):
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._api, self._logger)

    def set_runtime_cache(self, cache: Any) -> bool:
        return isinstance(cache, IRuntimeCache)


class IRuntimeCache(_Counted):
    pass


class IExecutionContext(_Counted):
    def __init__(self, api: TensorRTDouble, logger: Any, engine: ICudaEngine) -> None:
        super().__init__(api, logger)
        self._engine = engine
        self._profile = 0
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._version = 0
        self._is_warm = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._api.device.streams
        if profile_index >= self._engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self._profile = profile_index
        self._shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        fixed = self._engine.get_tensor_shape(name)
        ranges = (
            [fixed] * 3 if -1 not in fixed else self._engine.get_tensor_profile_shape(name, self._profile)
        )
        if len(shape) != len(fixed) or any(
            not low <= size <= high for low, size, high in zip(ranges[0], shape, ranges[2], strict=True)
        ):
            return self._refuse(f"{name} {shape} is outside profile {self._profile}")
        if self._shapes.get(name) != shape:
            self._version += 1
            self._is_warm = False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory, f"{name} has no address"
        self._addresses[name] = int(memory)
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        assert isinstance(output_allocator, IOutputAllocator)
        self._allocators[name] = output_allocator
        return True

    def _is_input(self, name: str) -> bool:
        return self._engine.get_tensor_mode(name) is TensorIOMode.INPUT

    @property
    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(place) for place in range(self._engine.num_io_tensors)]

    def infer_shapes(self) -> list[str]:
        return [
            name
            for name in self._names
            if self._is_input(name)
            and (
                name not in self._shapes
                or (self._engine.is_shape_inference_io(name) and name not in self._addresses)
            )
        ]

    def get_tensor_shape(self, name: str) -> Shape:
        if self._is_input(name):
            return self._shapes[name]
        model = onnx.ModelProto()
        model.CopyFrom(self._engine.model)
        for value in model.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, self._shapes[value.name], strict=True):
                dim.dim_value = size
            if self._engine.is_shape_inference_io(value.name):
                model.graph.initializer.append(numpy_helper.from_array(self._read(value.name), value.name))
        for value in model.graph.output:
            value.type.tensor_type.shape.ClearField("dim")
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        dims = next(v for v in inferred.graph.output if v.name == name).type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def _dtype(self, name: str) -> np.dtype:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self._engine._type(name).elem_type))

    def _read(self, name: str, address: int | None = None, shape: Shape | None = None) -> np.ndarray:
        shape, dtype = self._shapes[name] if shape is None else shape, self._dtype(name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not size:
            return np.empty(shape, dtype)
        memory = self._api.device.memory(self._addresses[name] if address is None else address, size)
        return memory.copy().view(dtype).reshape(shape)

    def _write(self, address: int, array: np.ndarray) -> None:
        if array.nbytes:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._api.device.memory(address, array.nbytes)[:] = data

    def execute_async_v3(self, stream_handle: int) -> bool:
        device, api = self._api.device, self._api
        stream = device.streams[stream_handle]
        assert not self.infer_shapes(), "executed before all shapes were set"
        if stream.captured is not None and not (self._is_warm and api.can_capture):
            return self._refuse("this execution cannot be captured")
        known = [name for name in self._names if name not in self._allocators]
        addresses = {name: self._addresses[name] for name in known}
        shapes, version = dict(self._shapes), self._version
        if api.fails is not None:
            stream.drain()
            if any((self._read(name) == api.fails).any() for name in shapes):
                return self._refuse("the double fails on this batch")

        def compute() -> dict[str, np.ndarray]:
            feeds = {name: self._read(name, addresses[name], shape) for name, shape in shapes.items()}
            if api.faults is not None and any((array == api.faults).any() for array in feeds.values()):
                raise BackendError("the device faults on this batch", "")
            api.executions += 1
            outputs = [name for name in self._names if not self._is_input(name)]
            return dict(zip(outputs, self._engine.session.run(outputs, feeds), strict=True))

        def execute() -> None:
            for name, array in compute().items():
                self._write(addresses[name], array)

        def check() -> None:
            assert self._version == version, "a graph is launched after the shapes of its context changed"

        self._is_warm = True
        if not self._allocators:
            stream.add(execute, check)
            return True
        assert stream.captured is None
        stream.drain()
        for name, array in compute().items():
            if name in self._allocators:
                size = max(array.nbytes, 1)
                address = self._allocators[name].reallocate_output_async(name, 0, size, 256, stream_handle)
                if address is None:
                    return self._refuse(f"no memory for {name}")
                self._allocators[name].notify_shape(name, array.shape)
                self._write(address, array)
            else:
                self._write(addresses[name], array)
        return True
