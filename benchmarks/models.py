"""The ONNX models the benchmarks score: built node by node, with seeded random weights.

The weights mean nothing; sizes, operators and the cost of a row are those of trained networks. Batch norm is
folded: a convolution carries its bias, as it does in a network exported for inference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["IR_VERSION", "OPSET", "GraphBuilder", "resnet18", "small_resnet", "tiny_mlp"]

OPSET = 17
IR_VERSION = 8

FloatArray = npt.NDArray[np.float32]


class GraphBuilder:
    """Collects nodes and weights of a float32 network with one input and one output.

    Every method that adds a node takes the layer's name and the name of the tensor it reads, and returns the
    name of the tensor it makes. Weights are copied into the model.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(
        self,
        name: str,
        x: str,
        weight: FloatArray,
        bias: FloatArray,
        *,
        stride: int = 1,
        pad: int = 0,
    ) -> str:
        """Adds a convolution: weight [out, in, k, k], bias [out]; ``pad`` rows and columns on every side."""
        kernel = list(weight.shape[2:])
        params = self._parameters(name, weight, bias)
        return self._node(
            "Conv", name, [x, *params], kernel_shape=kernel, strides=[stride, stride], pads=[pad] * 4
        )

    def linear(self, name: str, x: str, weight: FloatArray, bias: FloatArray) -> str:
        """Adds a fully connected layer: x [N, in], weight [out, in], bias [out]."""
        return self._node("Gemm", name, [x, *self._parameters(name, weight, bias)], transB=1)

    def relu(self, name: str, x: str) -> str:
        """Adds max(x, 0)."""
        return self._node("Relu", name, [x])

    def add(self, name: str, x: str, y: str) -> str:
        """Adds the elementwise sum of two tensors of one shape."""
        return self._node("Add", name, [x, y])

    def max_pool(self, name: str, x: str, *, size: int, stride: int, pad: int = 0) -> str:
        """Adds a square max pooling."""
        return self._node(
            "MaxPool", name, [x], kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4
        )

    def global_average_pool(self, name: str, x: str) -> str:
        """Adds the mean over height and width and flattens: [N, C, H, W] to [N, C]."""
        return self.flatten(f"{name}.flatten", self._node("GlobalAveragePool", name, [x]))

    def flatten(self, name: str, x: str) -> str:
        """Adds a reshape of [N, ...] to [N, elements of a row]."""
        return self._node("Flatten", name, [x], axis=1)

    def model(
        self, graph_name: str, *, source: tuple[str, Sequence[int]], result: tuple[str, str, Sequence[int]]
    ) -> onnx.ModelProto:
        """Closes the graph.

        Args:
            graph_name: Name of the graph.
            source: Name and row shape of the float32 input; the batch dimension ``N`` is put in front.
            result: The tensor to return, the name the output gets, and its row shape.

        Returns:
            The model, checked with full shape inference.

        Raises:
            onnx.checker.ValidationError: The nodes do not form a valid graph.
            onnx.shape_inference.InferenceError: The declared shapes contradict the nodes.
        """
        tensor, output, output_row = result
        for node in self._nodes:
            node.input[:] = [output if name == tensor else name for name in node.input]
            node.output[:] = [output if name == tensor else name for name in node.output]
        graph = helper.make_graph(
            self._nodes,
            graph_name,
            [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, ["N", *source[1]])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *output_row])],
            initializer=self._weights,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="trtfleet-benchmarks",
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _parameters(self, name: str, weight: FloatArray, bias: FloatArray) -> list[str]:
        arrays = {f"{name}.weight": weight, f"{name}.bias": bias}
        self._weights += [numpy_helper.from_array(array, key) for key, array in arrays.items()]
        return list(arrays)

    def _node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}.out"
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output


class _Residual:
    """Adds He-initialized layers and residual blocks to a graph."""

    def __init__(self, *, seed: int, blocks: int) -> None:
        self.graph = GraphBuilder()
        self._rng = np.random.default_rng(seed)
        # Variance grows by about (1 + 1/blocks) a block, so by less than e in all, at any depth.
        self._branch_gain = 1 / math.sqrt(blocks)

    def conv(
        self, name: str, x: str, shape: tuple[int, int, int], *, stride: int = 1, gain: float = math.sqrt(2)
    ) -> str:
        """Adds a convolution of shape (out, in, kernel) padded to keep height and width at stride 1."""
        out, into, kernel = shape
        weight = self._normal((out, into, kernel, kernel), gain / math.sqrt(into * kernel**2))
        bias = self._normal((out,), 0.02)
        return self.graph.conv(name, x, weight, bias, stride=stride, pad=kernel // 2)

    def linear(self, name: str, x: str, *, into: int, out: int, gain: float = 1.0) -> str:
        """Adds a fully connected layer."""
        weight = self._normal((out, into), gain / math.sqrt(into))
        return self.graph.linear(name, x, weight, self._normal((out,), 0.02))

    def block(self, name: str, x: str, *, into: int, out: int, stride: int) -> str:
        """Adds a basic block: two 3x3 convolutions and a shortcut, 1x1-projected where the shape changes."""
        branch = self.conv(f"{name}.conv1", x, (out, into, 3), stride=stride)
        branch = self.graph.relu(f"{name}.relu1", branch)
        branch = self.conv(f"{name}.conv2", branch, (out, out, 3), gain=self._branch_gain)
        if stride != 1 or into != out:
            x = self.conv(f"{name}.downsample", x, (out, into, 1), stride=stride, gain=1.0)
        return self.graph.relu(f"{name}.relu2", self.graph.add(f"{name}.add", branch, x))

    def stages(self, x: str, *, into: int, widths: Sequence[int], blocks_each: int) -> str:
        """Adds one stage of blocks per width; each stage but the first halves height and width."""
        for stage, width in enumerate(widths, start=1):
            for block in range(blocks_each):
                stride = 2 if stage > 1 and block == 0 else 1
                x = self.block(f"layer{stage}.{block}", x, into=into, out=width, stride=stride)
                into = width
        return x

    def classifier(self, graph_name: str, x: str, *, into: int, classes: int, size: int) -> onnx.ModelProto:
        """Closes the network with global average pooling and one fully connected layer."""
        logits = self.linear("fc", self.graph.global_average_pool("avgpool", x), into=into, out=classes)
        return self.graph.model(
            graph_name, source=("image", [3, size, size]), result=(logits, "logits", [classes])
        )

    def _normal(self, shape: tuple[int, ...], std: float) -> FloatArray:
        return self._rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


def small_resnet(classes: int = 100, size: int = 64, *, seed: int = 0) -> onnx.ModelProto:
    """A ten-layer ResNet: a stride-2 stem, four basic blocks (32, 64, 128, 256 channels) and a classifier.

    Input ``image`` float32 [N, 3, size, size], normalized to about zero mean and unit variance; output
    ``logits`` float32 [N, classes]. At the defaults 64 million multiply-adds a row and 1.25 million
    parameters.
    """
    widths = (32, 64, 128, 256)
    net = _Residual(seed=seed, blocks=len(widths))
    x = net.graph.relu("stem.relu", net.conv("stem.conv", "image", (widths[0], 3, 3), stride=2))
    x = net.stages(x, into=widths[0], widths=widths, blocks_each=1)
    return net.classifier("small_resnet", x, into=widths[-1], classes=classes, size=size)


def resnet18(classes: int = 1000, size: int = 224, *, seed: int = 0) -> onnx.ModelProto:
    """ResNet-18 (He et al., 2015) with its batch norms folded into the convolutions.

    Input ``image`` float32 [N, 3, size, size], normalized to about zero mean and unit variance; output
    ``logits`` float32 [N, classes]. At the defaults 1.81 billion multiply-adds a row and 11.68 million
    parameters.
    """
    widths = (64, 128, 256, 512)
    net = _Residual(seed=seed, blocks=2 * len(widths))
    x = net.graph.relu("relu1", net.conv("conv1", "image", (widths[0], 3, 7), stride=2))
    x = net.graph.max_pool("maxpool", x, size=3, stride=2, pad=1)
    x = net.stages(x, into=widths[0], widths=widths, blocks_each=2)
    return net.classifier("resnet18", x, into=widths[-1], classes=classes, size=size)


def tiny_mlp(features: int, classes: int, *, seed: int = 0) -> onnx.ModelProto:
    """Two fully connected layers with 32 units between them: almost nothing to compute.

    Input ``features`` float32 [N, features]; output ``logits`` float32 [N, classes].
    """
    hidden = 32
    net = _Residual(seed=seed, blocks=1)
    x = net.graph.relu("relu1", net.linear("fc1", "features", into=features, out=hidden, gain=math.sqrt(2)))
    logits = net.linear("fc2", x, into=hidden, out=classes)
    return net.graph.model("tiny_mlp", source=("features", [features]), result=(logits, "logits", [classes]))
