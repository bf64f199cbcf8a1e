"""The calibration table: what it says of tensors, its bytes, and what it refuses to be read from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from trtfleet.errors import CalibrationError
from trtfleet.trt_actors.calibration.statistics import Statistics, TensorStatistics, merge_all
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.tensor_range import TensorRange
from trtfleet.trt_actors.calibration.thresholds import Method, scale_of

MODEL = "0123456789abcdef" * 4


def statistics(seed: int = 0, size: int = 10_000) -> Statistics:
    values = np.random.default_rng(seed).standard_normal((3, size)).astype(np.float32)
    return {
        "conv/out": TensorStatistics.of(values[0]),
        "a:0": TensorStatistics.of(np.maximum(values[1], 0)),
        "always zero": TensorStatistics.of(np.zeros(size, np.float32)),
    }


def make(found: Statistics | None = None, method: str = "percentile:99", **changes: Any) -> CalibrationTable:
    plain = {
        "model": MODEL,
        "model_name": "net.onnx",
        "samples": 500,
        "seed": 1,
        "batch_size": 32,
        "feed": {"normalize": {"mean": [0.5], "std": (1, 2)}, "layout": None},
        "excluded": ("Softmax", "head/*"),
    }
    return CalibrationTable.from_statistics(
        found or statistics(), method=Method.parse(method), **{**plain, **changes}
    )


def damaged(change: dict[str, Any], tensor: dict[str, Any] | None = None) -> bytes:
    """A table's bytes with some values replaced; one of a tensor that is ``...`` is left out."""
    values = json.loads(make().encode())
    values.update(change)
    if tensor is not None:
        values["tensors"]["a:0"].update(tensor)
    kept = {name: value for name, value in values.items() if value is not ...}
    return json.dumps(kept).encode()


def test_a_tensor_s_range_tells_what_was_seen_and_chosen() -> None:
    values = np.concatenate([np.zeros(900), np.arange(1, 101)]).astype(np.float32)
    tensor = make({"x": TensorStatistics.of(-values)}, "percentile:95").tensors["x"]
    assert (tensor.minimum, tensor.maximum, tensor.count, tensor.zeros) == (-100, 0, 1000, 900)
    assert 50 < tensor.threshold < 51
    assert tensor.scale == np.float32(tensor.threshold / 127)
    assert tensor.clipped == 0.05
    assert len(tensor.histogram) == 64
    assert sum(tensor.histogram) == 100
    assert tensor.histogram[int(100 / tensor.bin_width)] > 0


@given(
    stn.arrays(np.float32, st.integers(1, 40), elements=st.floats(-100, 100, width=32)),
    st.sampled_from(["entropy", "percentile:60", "mse", "minmax"]),
)
def test_the_share_clipped_is_that_of_the_raw_values(values: np.ndarray, method: str) -> None:
    tensor = make({"x": TensorStatistics.of(values)}, method).tensors["x"]
    edges = np.abs(values) == tensor.threshold
    beyond = (np.abs(values) > tensor.threshold).mean()
    assert beyond <= tensor.clipped <= beyond + edges.mean()


def test_an_all_zero_tensor_has_the_scale_one_and_no_histogram() -> None:
    tensor = make().tensors["always zero"]
    assert (tensor.scale, tensor.clipped, tensor.histogram, tensor.bin_width) == (1.0, 0.0, (), 0.0)


def test_the_worst_clipped_tensors_come_first() -> None:
    rng = np.random.default_rng(0)
    found = {name: TensorStatistics.of(rng.standard_t(3, 5000).astype(np.float32)) for name in "abcde"}
    worst = make({**found, **statistics()}, "entropy").worst_clipped(3)
    shares = [tensor.clipped for _, tensor in worst]
    assert len(worst) == 3
    assert shares == sorted(shares, reverse=True)
    assert make(method="minmax").worst_clipped() == []


def test_a_table_is_read_as_it_was_written() -> None:
    table = make()
    read = CalibrationTable.decode(table.encode(), "t.json")
    assert read == table
    assert read.encode() == table.encode()
    assert read.digest == table.digest
    assert read.feed == {"normalize": {"mean": [0.5], "std": [1, 2]}, "layout": None}
    assert read.scales == {name: tensor.scale for name, tensor in table.tensors.items()}
    assert list(read.scales) == ["a:0", "always zero", "conv/out"]


def test_equal_tables_are_equal_bytes_whatever_the_order_and_division() -> None:
    parts = [statistics(seed) for seed in range(4)]
    backward = [dict(reversed(part.items())) for part in reversed(parts)]
    feed = {"layout": None, "normalize": {"std": [1, 2], "mean": [0.5]}}
    assert make(merge_all(parts)).encode() == make(merge_all(backward), feed=feed).encode()


def test_other_values_are_another_digest() -> None:
    assert (
        len({make().digest, make(statistics(1)).digest, make(seed=2).digest, make(method="mse").digest}) == 4
    )


def test_a_tensor_is_a_line_of_the_file() -> None:
    lines = make().encode().decode().splitlines()
    assert sum(line.startswith('"conv/out":{') for line in lines) == 1
    assert json.loads(make().encode())["format"] == 1


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, np.nan, np.inf], "2 values are NaN or infinite"),
        ([], "no value was seen"),
    ],
)
def test_tensors_without_a_range_are_named(values: list[float], says: str) -> None:
    with pytest.raises(CalibrationError, match=f"tensor 'x': {says}"):
        make({"x": TensorStatistics.of(np.array(values, np.float32))})


def test_another_model_is_refused_naming_both() -> None:
    make().require_model(MODEL, "net.onnx")
    with pytest.raises(CalibrationError) as raised:
        make().require_model("f" * 64, "other.onnx")
    assert raised.value.fact == (
        "the calibration table is of net.onnx with digest 0123456789ab, other.onnx has digest ffffffffffff"
    )
    assert raised.value.hint == "make a table for this model: trtfleet calibrate other.onnx DATA"


def test_differences_of_the_feed_are_told_in_words() -> None:
    table = make(feed={"normalize": "imagenet", "resize": None, "mean": (1, 2)})
    assert table.feed_differences({"resize": None, "mean": [1, 2], "normalize": "imagenet"}) == ""
    said = table.feed_differences({"normalize": "none", "mean": [1, 2], "layout": "NCHW"})
    assert "normalize is imagenet there, none is wanted" in said
    assert "layout is absent there, NCHW is wanted" in said
    assert "resize is" in said


def test_a_table_of_a_later_version_says_so() -> None:
    with pytest.raises(CalibrationError) as raised:
        CalibrationTable.decode(damaged({"format": 3, "tensors": []}), "t.json")
    assert raised.value.fact == "t.json has format 3, this trtfleet reads format 1"
    assert raised.value.hint == "upgrade trtfleet"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "Expecting value"),
        (b"\x80{}", "decode"),
        (b"[]", "no JSON object"),
        (b"{}", "it has the format None"),
        (b'{"format": true}', "it has the format True"),
        (b'{"format": 1}', "a table has the fields"),
        (b"[" * 100_000, ""),
        (make().encode()[:-20], "Expecting"),
    ],
)
def test_bytes_that_are_no_table_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(
        CalibrationError, match=rf"(?i)t\.json is no calibration table or a damaged one: .*{says}"
    ):
        CalibrationTable.decode(data, "t.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "x"}, "64 hexadecimal digits"),
        ({"model": 3}, "model cannot be int"),
        ({"method": "kl"}, "method must be"),
        ({"method": " mse"}, "the method ' mse'"),
        ({"samples": 0}, "samples must be >= 1, got 0"),
        ({"samples": True}, "samples cannot be bool"),
        ({"seed": 1.0}, "seed cannot be float"),
        ({"batch_size": -2}, "batch_size must be >= 1"),
        ({"feed": []}, "feed cannot be list"),
        ({"excluded": [1]}, "excluded holds names"),
        ({"tensors": {}}, "it has no tensors"),
        ({"tensors": {"x": 1}}, "tensor 'x': a range has the fields"),
        ({"extra": 1}, "a table has the fields"),
        ({"seed": ...}, "a table has the fields"),
    ],
)
def test_fields_that_cannot_be_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        CalibrationTable.decode(damaged(change), "t.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scale": 0.0, "threshold": 0.0}, "is not the 127th part"),
        ({"scale": -1.0, "threshold": -127.0}, "is not the 127th part"),
        ({"scale": 1e-40, "threshold": 1.27e-38}, "is not the 127th part"),
        ({"scale": 0.5}, "is not the 127th part"),
        ({"scale": float("nan")}, "NaN is no number of a table"),
        ({"threshold": float("inf")}, "Infinity is no number"),
        ({"threshold": "1"}, "threshold cannot be str"),
        ({"count": 1.5}, "count cannot be float"),
        ({"zeros": 10**6}, "10000 values, 1000000 of them zero"),
        ({"clipped": 1.5}, "a share of 1.5 clipped"),
        ({"minimum": 99.0}, "a range from 99.0"),
        ({"histogram": [1]}, "a histogram of 1 bins"),
        ({"histogram": [1.0] * 64}, "a histogram has whole numbers"),
        ({"histogram": [-1] * 64}, "that cannot be"),
        ({"bin_width": 0.0}, "of width 0.0"),
        ({"more": 1}, "a range has the fields"),
    ],
)
def test_ranges_that_cannot_be_are_refused_naming_the_tensor(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CalibrationError, match=says):
        CalibrationTable.decode(damaged({}, change), "t.json")


def test_a_number_too_large_for_a_float_is_refused() -> None:
    data = damaged({}, {"minimum": -1.0}).replace(b'"minimum": -1.0', b'"minimum": -1e999')
    with pytest.raises(CalibrationError, match="tensor 'a:0': minimum is -inf"):
        CalibrationTable.decode(data, "t.json")


def test_a_file_of_a_hostile_size_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtfleet.trt_actors.calibration import table

    monkeypatch.setattr(table, "_MAX_BYTES", 100)
    with pytest.raises(CalibrationError, match="a table has at most 100"):
        CalibrationTable.decode(make().encode(), "t.json")
    monkeypatch.undo()
    monkeypatch.setattr(table, "_MAX_TENSORS", 2)
    with pytest.raises(CalibrationError, match="it has 3 tensors, at most 2 can be"):
        CalibrationTable.decode(make().encode(), "t.json")


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=3))
def test_damage_is_an_error_or_harmless_but_never_a_crash(position: int, noise: bytes) -> None:
    data = bytearray(make(statistics(size=20)).encode())
    position %= len(data)
    data[position : position + len(noise)] = noise
    try:
        read = CalibrationTable.decode(bytes(data), "t.json")
    except CalibrationError:
        return
    assert all(np.isfinite(scale) and scale > 0 for scale in read.scales.values())


def test_a_range_may_be_made_from_a_threshold_alone() -> None:
    tensor = TensorRange(threshold=2, scale=scale_of(2), minimum=-1, maximum=3, count=5)
    table = CalibrationTable(
        model=MODEL, model_name="n", method="mse", samples=1, seed=0, batch_size=1, tensors={"x": tensor}
    )
    assert CalibrationTable.decode(table.encode(), "t").tensors == {"x": tensor}
