"""The demo's committed dataset and model are what their descriptions say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO_DATA = ROOT / "jobs" / "demo_data"
DATA = DEMO_DATA / "digits.parquet"
MODEL = DEMO_DATA / "digits.onnx"
README = ROOT / "benchmarks" / "digits" / "README.md"

ROWS_OF_DIGIT = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pq.read_table(DATA)


def pixels_of(table: pa.Table) -> np.ndarray:
    return np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 1, 8, 8)


def test_files_are_small_enough_to_ship_with_the_package() -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO_DATA.iterdir()}
    assert {"digits.parquet", "digits.onnx", "SOURCE.md"} <= set(sizes)
    assert sum(sizes.values()) < 400_000, sizes


def test_schema_names_the_tensor_in_the_bytes(table: pa.Table) -> None:
    assert table.schema.names == ["id", "image", "label", "split"]
    assert table.schema.types == [pa.int64(), pa.binary(64), pa.int8(), pa.string()]
    assert table.schema.field("image").metadata == {b"trtfleet.dtype": b"uint8", b"trtfleet.shape": b"1,8,8"}
    assert not table.schema.metadata


def test_row_groups_are_small_and_images_have_no_statistics() -> None:
    footer = pq.read_metadata(DATA)
    rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    assert rows == [300, 300, 300, 300, 300, 297]
    for group in range(footer.num_row_groups):
        columns = {
            column["path_in_schema"]: column for column in footer.row_group(group).to_dict()["columns"]
        }
        assert columns["image"]["statistics"] is None
        assert columns["id"]["statistics"]["null_count"] == 0
        assert {column["compression"] for column in columns.values()} == {"ZSTD"}


def test_rows_are_the_whole_dataset_in_order(table: pa.Table) -> None:
    assert table["id"].to_pylist() == list(range(1797))
    assert np.bincount(table["label"].to_numpy(), minlength=10).tolist() == ROWS_OF_DIGIT
    pixels = pixels_of(table)
    assert (pixels.min(), pixels.max()) == (0, 16)
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == table.num_rows


def test_splits_are_disjoint_complete_and_stratified(table: pa.Table) -> None:
    # Each row has one split and ids are unique, so the splits are disjoint; together they hold every row.
    split = np.asarray(table["split"].to_pylist())
    assert set(split) == {"train", "held-out"}
    held_out = np.bincount(table["label"].to_numpy()[split == "held-out"], minlength=10)
    assert held_out.tolist() == [round(0.2 * rows) for rows in ROWS_OF_DIGIT]


def test_model_is_valid_and_has_the_documented_signature() -> None:
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.type, source.shape) == ("image", "tensor(float)", ["N", 1, 8, 8])
    assert (result.name, result.type, result.shape) == ("logits", "tensor(float)", ["N", 10])


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_accuracy_is_the_one_written_in_the_readme(table: pa.Table, split: str) -> None:
    line = re.search(rf"^- {split} accuracy: ([\d.]+) % \((\d+) of (\d+)\)$", README.read_text("utf-8"), re.M)
    assert line is not None, f"{README} states no {split} accuracy"
    percent, right, rows = line[1], int(line[2]), int(line[3])

    chosen = table.filter(pc.equal(table["split"], split))
    session = ort.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": pixels_of(chosen).astype(np.float32) / 16})
    found = int((logits.argmax(axis=1) == chosen["label"].to_numpy()).sum())
    assert (found, chosen.num_rows) == (right, rows)
    assert f"{100 * found / rows:.2f}" == percent
    assert found >= 0.98 * rows
