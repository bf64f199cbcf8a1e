"""Makes a deeper network on the demo's digits, upscaled to 32x32: deep.onnx, which INT8 is measured with.

    pip install torch==2.13.0 onnx onnxruntime pyarrow
    python benchmarks/digits/train_deep.py

Thirteen convolutions with batch normalization, ReLU and five additions; the batch norms are written as they
are, not merged into the convolutions, as training frameworks export them. Seeded, on one CPU thread. The
split is the dataset's own; the held-out rows take part in nothing before the accuracies printed at the end.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow.parquet as pq
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(HERE)]

from models import GraphBuilder  # noqa: E402
from upscale import SCALE, SIDE, upscaled  # noqa: E402

SEED = 21
EPOCHS = 30
BATCH_ROWS = 64
PEAK_LEARNING_RATE = 1e-2
STEM_CHANNELS = 16
BLOCKS = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1))
"""Channels into and out of each block, and its stride."""


def _convolution(into: int, out: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them, 1x1-projected where the shape changes."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(into, out, 3, stride), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = _convolution(out, out, 3, 1), nn.BatchNorm2d(out)
        has_shape = into == out and stride == 1
        self.conv3 = None if has_shape else _convolution(into, out, 1, stride)
        self.norm3 = None if has_shape else nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = functional.relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        shortcut = x if self.conv3 is None else self.norm3(self.conv3(x))
        return functional.relu(branch + shortcut)


class DeepNet(nn.Module):
    """A stem that halves height and width, five blocks, the mean over the rest, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = _convolution(1, STEM_CHANNELS, 3, 2), nn.BatchNorm2d(STEM_CHANNELS)
        self.blocks = nn.ModuleList(Block(*sizes) for sizes in BLOCKS)
        self.fc = nn.Linear(BLOCKS[-1][1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(dim=(2, 3)))


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each image by up to four pixels in height and in width; the border comes in empty."""
    padded = functional.pad(images, (SCALE,) * 4)
    moves = torch.randint(0, 2 * SCALE + 1, (len(images), 2), generator=generator).tolist()
    cut = (image[:, y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(padded, moves, strict=True))
    return torch.stack(list(cut))


def train(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> DeepNet:
    """Trains on all rows given, for a fixed number of epochs."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = DeepNet().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(x) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for batch in order[: len(x) // BATCH_ROWS * BATCH_ROWS].split(BATCH_ROWS):
            loss = functional.cross_entropy(net(shifted(x[batch], generator)), y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / (len(x) // BATCH_ROWS):.3f}", file=sys.stderr)
    return net.eval()


class _Graph(GraphBuilder):
    """Adds batch normalization to what the builder knows."""

    def normed(self, name: str, x: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> str:
        """Adds a convolution without a bias, and the batch norm behind it as a node of its own."""
        weight = numpy_helper.from_array(_values(conv.weight), f"{name}.weight")
        stride, pad = conv.stride[0], conv.kernel_size[0] // 2
        self._weights.append(weight)
        sizes = {"kernel_shape": list(conv.kernel_size), "strides": [stride, stride], "pads": [pad] * 4}
        y = self._node("Conv", name, [x, weight.name], **sizes)
        parts = {
            "scale": norm.weight,
            "bias": norm.bias,
            "mean": norm.running_mean,
            "var": norm.running_var,
        }
        made = [numpy_helper.from_array(_values(part), f"{name}.norm.{key}") for key, part in parts.items()]
        self._weights += made
        names = [tensor.name for tensor in made]
        return self._node("BatchNormalization", f"{name}.norm", [y, *names], epsilon=norm.eps)


def _values(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().numpy()


def to_onnx(net: DeepNet) -> onnx.ModelProto:
    """Writes the network in ONNX, batch norms included."""
    graph = _Graph()
    x = graph.relu("stem.relu", graph.normed("stem", "image", net.conv, net.norm))
    for number, block in enumerate(net.blocks, start=1):
        name = f"block{number}"
        branch = graph.relu(f"{name}.relu1", graph.normed(f"{name}.conv1", x, block.conv1, block.norm1))
        branch = graph.normed(f"{name}.conv2", branch, block.conv2, block.norm2)
        if block.conv3 is not None:
            x = graph.normed(f"{name}.shortcut", x, block.conv3, block.norm3)
        x = graph.relu(f"{name}.relu2", graph.add(f"{name}.add", branch, x))
    mean = graph.global_average_pool("mean", x)
    logits = graph.linear("fc", mean, *[_values(part) for part in net.fc.parameters()])
    return graph.model("deep_digits", source=("image", [1, SIDE, SIDE]), result=(logits, "logits", [10]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the deeper network on the upscaled digits.")
    parser.add_argument("--out", type=Path, default=HERE / "deep.onnx", help="file to write")
    out: Path = parser.parse_args().out

    table = upscaled(pq.read_table(ROOT / "jobs" / "demo_data" / "digits.parquet"))
    raw = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8)
    pixels = raw.reshape(-1, 1, SIDE, SIDE).astype(np.float32) / np.float32(16)
    labels = table["label"].to_numpy().astype(np.int64)
    split = np.asarray(table["split"].to_pylist())
    in_train = split == "train"
    onnx.save(to_onnx(train(pixels[in_train], labels[in_train])), str(out))

    onnx.checker.check_model(str(out), full_check=True)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    right = session.run(["logits"], {"image": pixels})[0].argmax(axis=1) == labels
    for name in ("train", "held-out"):
        rows = split == name
        print(f"{name} accuracy: {100 * right[rows].mean():.2f} % ({right[rows].sum()} of {rows.sum()})")
    print(f"{out.name}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
