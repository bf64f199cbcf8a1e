"""Makes what the example runs on: mobilenet.onnx with seeded weights, and 500 generated images in images/.

    python examples/mobilenet/make_data.py [--size 224] [--rows 500] [--out FOLDER]

The network is MobileNetV1 as the tests have it, so this needs a checkout: `pip install -e .`. Its weights are
random numbers; what it answers means nothing, what it costs is real.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from trtfleet.tests.models.zoo import load

SEED = 500
FILES = 4
ROWS_PER_GROUP = 50
PATCHES = 4


def network(size: int) -> onnx.ModelProto:
    """MobileNetV1 for images of so many pixels in height and width; input ``image``, output ``logits``."""
    model = load("mobilenet_v1")
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = size
    return model


def images(rows: int, size: int) -> npt.NDArray[np.uint8]:
    """Pictures of a few soft patches of colour under noise: uint8 [rows, size, size, 3]."""
    rng = np.random.default_rng(SEED)
    places = np.linspace(0, PATCHES - 1, size)
    low = places.astype(int).clip(max=PATCHES - 2)
    share = places - low
    # Linear interpolation between the patches, along one axis and then along the other.
    blend = np.zeros((size, PATCHES), np.float32)
    blend[np.arange(size), low], blend[np.arange(size), low + 1] = 1 - share, share
    made = np.empty((rows, size, size, 3), np.uint8)
    for image in made:
        patches = rng.uniform(0, 255, (PATCHES, PATCHES, 3)).astype(np.float32)
        smooth = np.einsum("yi,xj,ijc->yxc", blend, blend, patches, optimize=True)
        image[:] = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255)
    return made


def write(pixels: npt.NDArray[np.uint8], folder: Path) -> None:
    """Writes ``id`` and ``image``, FixedSizeBinary whose metadata tell the type and shape, in a few files."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = pixels.shape[1:]
    kind = pa.binary(int(np.prod(shape)))
    metadata = {"trtfleet.dtype": "uint8", "trtfleet.shape": ",".join(map(str, shape))}
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("image", kind, metadata=metadata)])
    for number, rows in enumerate(np.array_split(np.arange(len(pixels)), FILES)):
        buffer = pa.py_buffer(np.ascontiguousarray(pixels[rows]))
        column = pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, buffer])
        pq.write_table(
            pa.table([rows, column], schema=schema),
            folder / f"part-{number}.parquet",
            row_group_size=ROWS_PER_GROUP,
            compression="none",
            use_dictionary=False,
            write_statistics=["id"],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the example's network and images.")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels (default 224)")
    parser.add_argument("--rows", type=int, default=500, help="images (default 500)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to (default: this one)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    onnx.save(network(options.size), str(options.out / "mobilenet.onnx"))
    write(images(options.rows, options.size), options.out / "images")
    print(f"mobilenet.onnx and {options.rows} images of {options.size}x{options.size} in {options.out}")


if __name__ == "__main__":
    main()
