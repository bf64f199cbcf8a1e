"""Saves a network of Paddle's as an inference model, and what Paddle computes with it; the tests run it.

    python tests/paddle/export.py NETWORK FOLDER [SEED]

NETWORK is a function of ``paddle.vision.models``, ``tiny``, or ``unknown``, which does not convert. FOLDER
gets ``inference.json`` (or ``.pdmodel``, where FLAGS_enable_pir_api=0), ``inference.pdiparams`` and
``expected.npz`` with the arrays ``x1``, ``y1_0``, ``y1_1``, ... of a batch of one, ``x2``, ... of two. It has
a process of its own, because Paddle keeps its memory and prints what it likes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle

SIDES = {"inception_v3": 299, "tiny": 8, "unknown": 8}


class Tiny(paddle.nn.Layer):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = paddle.nn.Conv2D(3, 4, 3)
        self.linear = paddle.nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Any) -> Any:
        return self.linear(paddle.flatten(paddle.nn.functional.relu(self.convolution(x)), 1))


class Unknown(paddle.nn.Layer):
    """Something with an operator that paddle2onnx does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = paddle.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return paddle.lgamma(self.linear(x))


def make(name: str, seed: int) -> Any:
    """The network in evaluation mode, with random weights and statistics that fit them."""
    paddle.seed(seed)
    own = {"tiny": Tiny, "unknown": Unknown}
    network = own[name]() if name in own else getattr(paddle.vision.models, name)(pretrained=False)
    generator = np.random.default_rng(seed)
    norms = [layer for layer in network.sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    for layer in norms:
        # Fresh ones are the identity, which would hide a mistake in converting them.
        layer.weight.set_value(generator.uniform(0.5, 1.5, layer.weight.shape).astype(np.float32))
        layer.bias.set_value(generator.normal(0, 0.2, layer.bias.shape).astype(np.float32))
        # One training step then takes over the statistics of its batch, which keeps activations in range.
        layer._momentum = 0.0
    if norms:
        network.train()
        with paddle.no_grad():
            network(paddle.to_tensor(batch(generator, 4, SIDES.get(name, 224))))
    network.eval()
    return network


def batch(generator: np.random.Generator, rows: int, side: int) -> np.ndarray:
    """Normalized images: float32[rows, 3, side, side]."""
    return generator.standard_normal((rows, 3, side, side), dtype=np.float32)


def main(name: str, folder: Path, seed: int) -> None:
    network = make(name, seed)
    side = SIDES.get(name, 224)
    generator = np.random.default_rng(seed + 1)
    found: dict[str, np.ndarray] = {}
    with paddle.no_grad():
        for rows in (1, 2):
            x = batch(generator, rows, side)
            results = network(paddle.to_tensor(x))
            found[f"x{rows}"] = x
            for place, y in enumerate(results if isinstance(results, list | tuple) else [results]):
                found[f"y{rows}_{place}"] = y.numpy()
    np.savez(folder / "expected.npz", **found)
    spec = paddle.static.InputSpec([None, 3, side, side], "float32", "image")
    paddle.jit.save(network, str(folder / "inference"), input_spec=[spec])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
