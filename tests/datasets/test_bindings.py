"""Which columns fit which input, what the errors say, and how unmapped inputs find their columns."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trtfleet.datasets.bindings import BindingOptions, ColumnBinding, ColumnKind, bind, guess_columns
from trtfleet.datasets.signature import Dim, TensorSpec
from trtfleet.errors import MismatchError, UsageError


def spec(dtype: Any, *shape: Dim, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(dtype), row_shape=shape)


def bound(kind: Any, want: TensorSpec, told: dict[str, str] | None = None, **options: Any) -> ColumnBinding:
    return bind(want, ["y"], pa.schema([pa.field("y", kind, metadata=told)]), BindingOptions(**options))


IMAGE = spec(np.float32, 3, 224, 224)
TOLD = {"trtfleet.dtype": "uint8", "trtfleet.shape": "1,8,8"}

FITTING = [
    (pa.float32(), spec(np.float32), None, ColumnKind.SCALARS, "float32", ()),
    (pa.bool_(), spec(np.float16, 1), None, ColumnKind.SCALARS, "bool", (1,)),
    (pa.list_(pa.int8()), spec(np.float32, 4), None, ColumnKind.DENSE, "int8", (4,)),
    (pa.large_list(pa.float64()), spec(np.float32, 4), None, ColumnKind.DENSE, "float64", (4,)),
    (pa.list_(pa.float32(), 12), spec(np.float32, 3, 2, 2), None, ColumnKind.DENSE, "float32", (3, 2, 2)),
    (pa.list_(pa.float32()), spec(np.float32, 3, 2, 2), None, ColumnKind.DENSE, "float32", (3, 2, 2)),
    (
        pa.list_(pa.list_(pa.list_(pa.uint8()))),
        spec(np.uint8, 3, "H", "W"),
        None,
        ColumnKind.DENSE,
        "uint8",
        None,
    ),
    (pa.list_(pa.float32(), 7), spec(np.float32, "F"), None, ColumnKind.DENSE, "float32", (7,)),
    (
        pa.fixed_shape_tensor(pa.uint8(), [8, 9, 3]),
        spec(np.uint8, "H", "W", 3),
        None,
        ColumnKind.DENSE,
        "uint8",
        (8, 9, 3),
    ),
    (pa.binary(64), spec(np.float32, 1, 8, 8), None, ColumnKind.BYTES, "uint8", (1, 8, 8)),
    (pa.binary(256), spec(np.float32, 1, 8, 8), None, ColumnKind.BYTES, "float32", (1, 8, 8)),
    (pa.binary(64), spec(np.int8, 1, 8, 8), None, ColumnKind.BYTES, "int8", (1, 8, 8)),
    (pa.binary(64), spec(np.bool_, 1, 8, 8), None, ColumnKind.BYTES, "uint8", (1, 8, 8)),
    (pa.binary(), spec(np.float32, 1, 8, 8), TOLD, ColumnKind.BYTES, "uint8", (1, 8, 8)),
    (pa.binary(), spec(np.float32, 64), TOLD | {"trtfleet.shape": "64"}, ColumnKind.BYTES, "uint8", (64,)),
    (
        pa.binary(),
        spec(np.float32, 1, 8, 8),
        TOLD | {"trtfleet.shape": "64"},
        ColumnKind.BYTES,
        "uint8",
        (1, 8, 8),
    ),
    (pa.large_binary(), spec(np.float32, 1, "H", "W"), TOLD, ColumnKind.BYTES, "uint8", (1, 8, 8)),
    (pa.binary(), IMAGE, None, ColumnKind.IMAGE, "uint8", (224, 224, 3)),
    (pa.large_binary(), spec(np.uint8, "H", "W", 1), None, ColumnKind.IMAGE, "uint8", None),
    (
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        IMAGE,
        None,
        ColumnKind.IMAGE,
        "uint8",
        (224, 224, 3),
    ),
    (pa.dictionary(pa.int32(), pa.binary()), IMAGE, None, ColumnKind.IMAGE, "uint8", (224, 224, 3)),
    (pa.dictionary(pa.int8(), pa.int64()), spec(np.int32), None, ColumnKind.SCALARS, "int64", ()),
    (pa.list_(pa.int32()), spec(np.int64, "L"), None, ColumnKind.RAGGED, "int32", None),
    (pa.null(), spec(np.float32, 2), None, ColumnKind.DENSE, "float32", (2,)),
    (pa.list_(pa.null()), spec(np.float32, 2), None, ColumnKind.DENSE, "float32", (2,)),
]


@pytest.mark.parametrize("case", FITTING, ids=lambda case: f"{case[0]} as {case[1]}")
def test_columns_that_fit(case: Any) -> None:
    kind, want, told, expected, dtype, stored_shape = case
    binding = bound(kind, want, told)
    assert (binding.kind, binding.dtype, binding.stored_shape) == (expected, np.dtype(dtype), stored_shape)
    again = pickle.loads(pickle.dumps(binding))
    assert again == binding


REFUSED = [
    (
        pa.list_(pa.float32(), 10),
        IMAGE,
        None,
        "input x wants float32[N, 3, 224, 224], column y holds list<float>[10]",
    ),
    (
        pa.list_(pa.float32(), 9),
        spec(np.float32, 10),
        None,
        "wants float32[N, 10], column y holds list<float>[9]",
    ),
    (pa.list_(pa.list_(pa.float32())), spec(np.float32, 10), None, "column y holds list<list<float>>"),
    (pa.float32(), spec(np.float32, 3), None, "column y holds float: it has one number a row"),
    (pa.float32(), spec(np.int64), None, "column y holds float: float32 values are not turned into int64"),
    (pa.list_(pa.float64()), spec(np.int8, "L"), None, "float64 values are not turned into int8"),
    (pa.string(), spec(np.float32), None, "column y holds string: this type cannot be a tensor"),
    (pa.decimal128(5, 2), spec(np.float32), None, "holds decimal128"),
    (pa.timestamp("us"), spec(np.int64), None, "holds timestamp"),
    (pa.list_(pa.string()), spec(np.float32, 2), None, "holds list<string>"),
    (pa.struct([("a", pa.int8())]), spec(np.float32), None, "holds struct"),
    (pa.list_(pa.binary()), spec(np.uint8, 2), None, "holds list<binary>"),
    (
        pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0]),
        spec(np.float32, 2, 3),
        None,
        "column y holds tensor<float>[3, 2]",
    ),
    (pa.binary(63), spec(np.float32, 1, 8, 8), None, "takes 256 bytes a row, not 63"),
    (pa.binary(60), spec(np.float32, 1, 8, 8), TOLD, "takes 64 bytes a row, not 60"),
    (pa.binary(64), spec(np.float32, 1, "H", 8), None, "bytes do not tell their shape"),
    (pa.binary(), spec(np.float32, 1, 4, 4), TOLD, "its trtfleet.shape is [1, 8, 8]"),
    (pa.binary(), spec(np.float32, 64), {"trtfleet.shape": "64"}, "bytes do not tell their dtype"),
    (pa.binary(), spec(np.float32, 64), TOLD | {"trtfleet.shape": "8,x"}, "trtfleet.shape is '8,x'"),
    (pa.binary(), spec(np.float32, 64), TOLD | {"trtfleet.shape": "0"}, "trtfleet.shape is '0'"),
    (pa.binary(), spec(np.float32, 1, 8, 8), TOLD | {"trtfleet.dtype": "pixel"}, "trtfleet.dtype is 'pixel'"),
    (pa.binary(), spec(np.int64, 1, 8, 8), TOLD | {"trtfleet.dtype": "float32"}, "not turned into int64"),
    (pa.binary(), spec(np.float32, 10), None, "encoded images give uint8 rows with 1, 3 or 4 channels"),
    (pa.binary(), spec(np.int8, 3, 8, 8), None, "encoded images give uint8 rows"),
    (pa.binary(), spec(np.float32, 5, 8, 8), None, "encoded images give uint8 rows"),
    (pa.float32(), spec(np.complex64), None, "a dtype no column can hold"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} as {case[1]}")
def test_columns_that_do_not_fit(case: Any) -> None:
    kind, want, told, message = case
    with pytest.raises(MismatchError, match=re.escape(message)) as caught:
        bound(kind, want, told)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_the_example_message_word_for_word() -> None:
    with pytest.raises(MismatchError) as caught:
        bound(pa.list_(pa.float32(), 10), IMAGE)
    assert caught.value.fact == "input x wants float32[N, 3, 224, 224], column y holds list<float>[10]"


def test_a_missing_column_names_the_nearest() -> None:
    schema = pa.schema([("image_bytes", pa.binary()), ("label", pa.int8())])
    with pytest.raises(MismatchError, match="wants column image_byte, which the data lacks") as caught:
        bind(IMAGE, ["image_byte"], schema)
    assert caught.value.hint == "nearest: image_bytes"
    with pytest.raises(MismatchError, match="column a, which the data has 2 times"):
        bind(IMAGE, ["a"], pa.schema([("a", pa.int8()), ("a", pa.int16())]))


def test_stacked_scalars() -> None:
    schema = pa.schema([("a", pa.int8()), ("b", pa.int8()), ("c", pa.float64()), ("d", pa.list_(pa.int8()))])
    assert bind(spec(np.float32, 2), ["a", "b"], schema).dtype == np.int8
    mixed = bind(spec(np.float32, "F"), ["a", "c", "b"], schema)
    assert (mixed.kind, mixed.dtype, mixed.stored_shape) == (ColumnKind.SCALARS, np.float32, (3,))
    with pytest.raises(
        MismatchError, match=r"wants float32\[N, 3\], but 2 columns \(a, b\) stack to \[N, 2\]"
    ):
        bind(spec(np.float32, 3), ["a", "b"], schema)
    with pytest.raises(MismatchError, match="column d holds list<int8>: only columns with one number a row"):
        bind(spec(np.float32, 2), ["a", "d"], schema)
    with pytest.raises(
        MismatchError, match="column c holds double: float64 values are not turned into int32"
    ):
        bind(spec(np.int32, 2), ["a", "c"], schema)
    with pytest.raises(MismatchError, match="input x has no column"):
        bind(spec(np.int32, 2), [], schema)


def test_rows_stored_in_the_other_layout_fit() -> None:
    kind = pa.fixed_shape_tensor(pa.uint8(), [32, 48, 3])
    binding = bound(kind, spec(np.float32, 3, "H", "W"))
    assert (binding.axes, binding.stored_shape, binding.stored_layout) == ((2, 0, 1), (32, 48, 3), "nhwc")
    graph_input = spec(binding.dtype, *(binding.stored_shape or ()))
    again = bound(kind, graph_input)
    assert (again.axes, again.stored_layout) == ((0, 1, 2), "nhwc")
    first = bound(pa.fixed_shape_tensor(pa.uint8(), [3, 32, 48]), spec(np.float32, 32, 48, 3))
    assert (first.axes, first.stored_layout) == ((1, 2, 0), "nchw")
    partly = bound(pa.list_(pa.list_(pa.list_(pa.uint8(), 3))), spec(np.float32, 3, 32, 48))
    assert (partly.axes, partly.stored_shape) == ((2, 0, 1), (32, 48, 3))
    with pytest.raises(MismatchError):
        bound(pa.fixed_shape_tensor(pa.uint8(), [48, 32, 3]), spec(np.float32, 3, 32, 48))


def test_a_permuted_tensor_knows_its_layout_in_memory() -> None:
    kind = pa.fixed_shape_tensor(pa.uint8(), [32, 48, 3], permutation=[2, 0, 1])
    binding = bound(kind, spec(np.float32, 3, 32, 48))
    assert (binding.axes, binding.stored_shape, binding.stored_layout) == ((2, 0, 1), (32, 48, 3), "nhwc")
    straight = bound(kind, spec(np.uint8, 32, 48, 3))
    assert (straight.axes, straight.stored_shape) == ((0, 1, 2), (32, 48, 3))


def test_free_dimensions_of_one_name_agree() -> None:
    bound(pa.fixed_shape_tensor(pa.uint8(), [4, 4]), spec(np.uint8, "S", "S"))
    with pytest.raises(MismatchError):
        bound(pa.fixed_shape_tensor(pa.uint8(), [4, 5]), spec(np.uint8, "S", "S"))
    half_known = bound(pa.list_(pa.list_(pa.uint8(), 5)), spec(np.uint8, "S", "S"))
    assert half_known.stored_shape == (5, 5)


def test_image_size_and_layout() -> None:
    free = spec(np.uint8, 3, "H", "W")
    assert bound(pa.binary(), free, resize=(10, 20)).stored_shape == (10, 20, 3)
    assert bound(pa.binary(), IMAGE, resize=(224, 224)).stored_shape == (224, 224, 3)
    with pytest.raises(MismatchError, match="--resize 256x256 contradicts its 224x224"):
        bound(pa.binary(), IMAGE, resize=(256, 256))
    both = spec(np.uint8, 3, 8, 4)
    assert bound(pa.binary(), both).axes == (2, 0, 1)
    assert bound(pa.binary(), both, layout="nhwc").stored_shape == (3, 8, 4)
    with pytest.raises(MismatchError, match="1, 3 or 4 channels"):
        bound(pa.binary(), IMAGE, layout="nhwc")


def test_padding() -> None:
    ids = pa.list_(pa.int64())
    assert bound(ids, spec(np.int64, "L"), pad_to=8).kind is ColumnKind.RAGGED
    assert bound(ids, spec(np.int64, 8), pad_to=8).kind is ColumnKind.RAGGED
    assert bound(ids, spec(np.int64, 8)).kind is ColumnKind.DENSE
    assert bound(ids, spec(np.int64, 8), pad_to=9).kind is ColumnKind.DENSE
    assert bound(pa.list_(pa.int64(), 6), spec(np.int64, "L")).kind is ColumnKind.DENSE
    assert bound(pa.list_(pa.int64(), 6), spec(np.int64, "L"), pad_to=8).kind is ColumnKind.RAGGED
    with pytest.raises(MismatchError, match="rows of 6 exceed --pad-to 4"):
        bound(pa.list_(pa.int64(), 6), spec(np.int64, "L"), pad_to=4)
    with pytest.raises(MismatchError, match="pad value -1 does not fit uint8"):
        bound(pa.list_(pa.uint8()), spec(np.uint8, "L"), pad_value=-1)


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("uint8", 255, True),
        ("uint8", 256, False),
        ("uint8", -1, False),
        ("int64", 0.5, False),
        ("int64", float("nan"), False),
        ("bool", 2, False),
        ("float32", float("nan"), True),
        ("float16", 1e6, False),
        ("float64", 1e300, True),
    ],
)
def test_fill_values_must_fit_the_dtype(dtype: str, value: float, fits: bool) -> None:
    if fits:
        assert bound(pa.null(), spec(dtype), fill_null=value).options.fill_null is value
    else:
        with pytest.raises(MismatchError, match=f"nulls cannot be filled with {value}: input x is {dtype}"):
            bound(pa.null(), spec(dtype), fill_null=value)


@pytest.mark.parametrize("options", [{"resize": (0, 5)}, {"resize": (5,)}, {"layout": "hwc"}, {"pad_to": 0}])
def test_malformed_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        BindingOptions(**options)


# --- guessing ---

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("Image", pa.binary()),
        ("label", pa.int8()),
        ("features", pa.list_(pa.float32(), 4)),
    ]
)


def test_guess_takes_the_same_name_first() -> None:
    exact = SCHEMA.append(pa.field("image", pa.binary()))
    assert guess_columns([spec(np.uint8, 3, 8, 8, name="image")], exact, {}) == {"image": ("image",)}
    assert guess_columns([spec(np.uint8, 3, 8, 8, name="image")], SCHEMA, {}) == {"image": ("Image",)}


def test_guess_takes_the_only_column_that_fits() -> None:
    assert guess_columns([IMAGE], SCHEMA, {}) == {"x": ("Image",)}
    inputs = [spec(np.float32, 4, name="dense"), spec(np.float32, 3, 8, 8, name="image")]
    assert guess_columns(inputs, SCHEMA, {}) == {"dense": ("features",), "image": ("Image",)}
    assert guess_columns(inputs, SCHEMA, {"dense": ("id", "label")}) == {
        "dense": ("id", "label"),
        "image": ("Image",),
    }


def test_guess_never_takes_scalars() -> None:
    with pytest.raises(MismatchError, match=r"no column given for input x \(float32\[N\]\)") as caught:
        guess_columns([spec(np.float32)], SCHEMA, {})
    assert "say --input x=COLUMN; no column's type fits" in caught.value.hint


def test_guess_does_not_choose_between_two() -> None:
    two = SCHEMA.append(pa.field("imagery", pa.binary()))
    with pytest.raises(MismatchError) as caught:
        guess_columns([spec(np.float32, 3, 8, 8, name="images")], two, {})
    assert caught.value.fact == (
        "no column given for input images (float32[N, 3, 8, 8]) among: "
        "id int64, Image binary, label int8, features list<float>[4], imagery binary"
    )
    assert "the type fits: Image, imagery" in caught.value.hint
    assert "similar names: Image, imagery" in caught.value.hint
    inputs = [spec(np.float32, 4, name="a"), spec(np.float32, 3, 8, 8, name="b")]
    with pytest.raises(MismatchError, match="no column given for input a"):
        guess_columns(inputs, SCHEMA, {})


def test_guess_refuses_an_input_the_model_lacks() -> None:
    with pytest.raises(MismatchError, match="--input maps imag, but the model's inputs are image") as caught:
        guess_columns([spec(np.uint8, 3, 8, 8, name="image")], SCHEMA, {"imag": ("Image",)})
    assert caught.value.hint == "say --input image=COLUMN"
