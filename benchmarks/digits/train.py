"""Makes the demo's dataset and model: digits.parquet and digits.onnx.

    pip install torch==2.13.0 scikit-learn onnx onnxruntime pyarrow
    python benchmarks/digits/train.py

The split and the training are seeded and run on one CPU thread; the accuracies printed at the end are
measured with ONNX Runtime on the two files as written. The held-out rows take part in nothing before that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from models import GraphBuilder  # noqa: E402

SEED = 20
HELD_OUT_SHARE = 0.2
ROWS_PER_GROUP = 300
EPOCHS = 120
BATCH_ROWS = 64
PEAK_LEARNING_RATE = 1e-2


def make_table() -> pa.Table:
    """Returns the 1,797 digits in scikit-learn's order: ``id``, ``image``, ``label`` and ``split``."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int8)
    if not np.array_equal(images, digits.images):
        raise ValueError("the pixels are not whole numbers between 0 and 255")
    shape = {"trtfleet.dtype": "uint8", "trtfleet.shape": "1,8,8"}
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("image", pa.binary(64), nullable=False, metadata=shape),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
        ]
    )
    rows = [image.tobytes() for image in images]
    columns = [np.arange(len(rows)), pa.array(rows, pa.binary(64)), labels, split_of(labels)]
    return pa.table(columns, schema=schema)


def split_of(labels: npt.NDArray[np.int8]) -> list[str]:
    """Returns "train" or "held-out" for each row: the same share of each class is held out."""
    rng = np.random.default_rng(SEED)
    split = ["train"] * len(labels)
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(labels == digit))
        for row in members[: round(HELD_OUT_SHARE * len(members))]:
            split[row] = "held-out"
    return split


def pixels(table: pa.Table) -> npt.NDArray[np.float32]:
    """Returns the images as float32 [rows, 1, 8, 8] between 0 and 1, the way ``--normalize 0:16`` does."""
    raw = b"".join(table["image"].to_pylist())
    return np.frombuffer(raw, np.uint8).reshape(-1, 1, 8, 8).astype(np.float32) / np.float32(16)


class DigitsNet(nn.Module):
    """Two 3x3 convolutions, of which the second halves height and width, and one fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 8, 1), (8, 16, 2)]
        self.convs = nn.ModuleList(
            nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False) for into, out, stride in widths
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _, out, _ in widths)
        self.dropout = nn.Dropout(0.3)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.relu(norm(conv(x)))
        return self.fc(self.dropout(x.flatten(1)))


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each image by -1, 0 or 1 pixel in height and in width; the border comes in empty."""
    padded = functional.pad(images, (1, 1, 1, 1))
    moves = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)])


def train(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> DigitsNet:
    """Trains on all rows given, for a fixed number of epochs."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    net = DigitsNet().train()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(x) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for batch in order[: len(x) // BATCH_ROWS * BATCH_ROWS].split(BATCH_ROWS):
            logits = net(shifted(x[batch], generator))
            loss = functional.cross_entropy(logits, y[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def to_onnx(net: DigitsNet) -> onnx.ModelProto:
    """Writes the network in ONNX, each batch norm folded into the convolution before it."""
    graph = GraphBuilder()
    x = "image"
    for index, (conv, norm) in enumerate(zip(net.convs, net.norms, strict=True), start=1):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        folded = [tensor.detach().numpy() for tensor in (weight, bias)]
        x = graph.conv(f"conv{index}", x, *folded, stride=conv.stride[0], pad=1)
        x = graph.relu(f"relu{index}", x)
    x = graph.linear("fc", graph.flatten("flatten", x), *[p.detach().numpy() for p in net.fc.parameters()])
    return graph.model("digits", source=("image", [1, 8, 8]), result=(x, "logits", [10]))


def report(data: Path, model: Path) -> None:
    """Prints the accuracy of the written model on the written data, for each split."""
    onnx.checker.check_model(str(model), full_check=True)
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    table = pq.read_table(data)
    (logits,) = session.run(["logits"], {"image": pixels(table)})
    right = logits.argmax(axis=1) == table["label"].to_numpy()
    top = np.sort(logits, axis=1)
    split = np.asarray(table["split"].to_pylist())
    for name in ("train", "held-out"):
        rows = split == name
        margin = (top[rows, -1] - top[rows, -2]).min()
        print(
            f"{name} accuracy: {100 * right[rows].mean():.2f} % ({right[rows].sum()} of {rows.sum()}), "
            f"smallest lead of the best logit {margin:.3f}"
        )
    weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(model).graph.initializer)
    print(f"parameters: {weights}")
    print(f"{data.name}: {data.stat().st_size} bytes, {model.name}: {model.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the demo's dataset and model.")
    parser.add_argument("--out", type=Path, default=ROOT / "jobs" / "demo_data", help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    data, model = out / "digits.parquet", out / "digits.onnx"

    table = make_table()
    pq.write_table(
        table,
        data,
        row_group_size=ROWS_PER_GROUP,
        compression="zstd",
        compression_level=19,
        use_dictionary=["label", "split"],
        write_statistics=["id", "label", "split"],
    )
    in_train = np.asarray(table["split"].to_pylist()) == "train"
    net = train(pixels(table)[in_train], table["label"].to_numpy()[in_train].astype(np.int64))
    onnx.save(to_onnx(net), model)
    report(data, model)


if __name__ == "__main__":
    main()
