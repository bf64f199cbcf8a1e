"""Which columns feed which model input, and whether they fit, decided before a row is read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import MismatchError
from .bound import BindingOptions, ColumnBinding, ColumnKind
from .columns import column_type, describe, plain_type
from .elements import castable, fill_value
from .pairing import Pairing, bind_bytes, bind_lists, wanted
from .placement import Placement
from .signature import TensorSpec

__all__ = ["BindingOptions", "ColumnBinding", "ColumnKind", "bind", "bind_all", "guess_columns"]

SHOWN_COLUMNS = 12


def bind(
    spec: TensorSpec, columns: Sequence[str], schema: pa.Schema, options: BindingOptions | None = None
) -> ColumnBinding:
    """Binds columns to an input, or says why they do not fit.

    Raw bytes take their dtype and shape from the field's metadata ``trtfleet.dtype`` ("uint8") and
    ``trtfleet.shape`` ("1,8,8"). Without it, bytes of fixed width are uint8 if they have one byte for each
    element of the input, else the input's own dtype; bytes of varying width are encoded images, because a
    schema cannot tell the two apart.

    Args:
        spec: The input; its name is used in messages.
        columns: One column, or several columns of numbers to stack along the last axis.
        schema: The columns there are, with their field metadata.
        options: What the user said about the input.

    Raises:
        MismatchError: A column is missing, or its type cannot give the input's dtype and shape.
    """
    options = options or BindingOptions()
    fields = [_field(spec, name, schema) for name in columns]
    if not fields:
        raise MismatchError(f"input {spec.name} has no column", f"say --input {spec.name}=COLUMN")
    if not castable(np.dtype(np.bool_), spec.dtype):
        raise MismatchError(
            f"input {spec.name} wants {wanted(spec)}, a dtype no column can hold", "convert the model"
        )
    if options.fill_null is not None and fill_value(options.fill_null, spec.dtype) is None:
        raise MismatchError(
            f"nulls cannot be filled with {options.fill_null}: input {spec.name} is {spec.dtype}",
            f"give --fill-null a value that {spec.dtype} holds",
        )
    pairings = [Pairing(spec=spec, field=each, options=options) for each in fields]
    if len(pairings) > 1:
        return _bind_stack(pairings)
    only = pairings[0]
    held = column_type(only.field.type)
    if held is None:
        raise only.mismatch("this type cannot be a tensor", "cast the column to numbers when you write it")
    if held.form == "bytes":
        return bind_bytes(only, held)
    if held.form == "scalar" or (held.form == "null" and spec.row_shape in ((), (1,))):
        if spec.row_shape not in ((), (1,)):
            raise only.mismatch("it has one number a row", f"stack columns with --input {spec.name}=A,B,C")
        return only.bound(ColumnKind.SCALARS, held.element or spec.dtype)
    if held.form == "null":
        return only.bound(ColumnKind.DENSE, spec.dtype, Placement.of(spec.row_shape))
    return bind_lists(only, held)


def _field(spec: TensorSpec, name: str, schema: pa.Schema) -> Any:
    count = len(schema.get_all_field_indices(name))
    if count != 1:
        near = difflib.get_close_matches(name, schema.names, n=3, cutoff=0.5)
        raise MismatchError(
            f"input {spec.name} wants column {name}, which the data "
            + (f"has {count} times" if count else "lacks"),
            f"nearest: {', '.join(near)}"
            if near and not count
            else f"columns: {', '.join(schema.names[:20])}",
        )
    return schema.field(name)


def _bind_stack(pairings: Sequence[Pairing]) -> ColumnBinding:
    spec, count = pairings[0].spec, len(pairings)
    shape = spec.row_shape
    if len(shape) != 1 or (isinstance(shape[0], int) and shape[0] != count):
        names = ", ".join(each.field.name for each in pairings)
        raise MismatchError(
            f"input {spec.name} wants {wanted(spec)}, but {count} columns ({names}) stack to [N, {count}]",
            f"give --input {spec.name}= as many columns of numbers as the input's last axis has elements",
        )
    dtypes = set()
    for each in pairings:
        held = column_type(each.field.type)
        if held is None or held.form not in ("scalar", "null"):
            raise each.mismatch("only columns with one number a row can be stacked")
        each.check_cast(held.element or spec.dtype)
        dtypes.add(held.element or spec.dtype)
    return ColumnBinding(
        input=spec,
        columns=tuple(each.field.name for each in pairings),
        kind=ColumnKind.SCALARS,
        options=pairings[0].options,
        dtype=dtypes.pop() if len(dtypes) == 1 else spec.dtype,
        types=tuple(plain_type(each.field.type) for each in pairings),
    )


def guess_columns(
    specs: Sequence[TensorSpec],
    schema: pa.Schema,
    given: Mapping[str, tuple[str, ...]],
    options: BindingOptions | None = None,
) -> dict[str, tuple[str, ...]]:
    """Names the columns of every input.

    An input that is not given takes the column of its own name (else the only one whose name differs in case
    only). If then one input is left and exactly one column not yet used fits it, it takes that one; a column
    with one number a row is never taken that way, it is too likely an id or a label.

    Args:
        specs: The model's inputs.
        schema: The columns there are.
        given: Columns by input, as the user mapped them.
        options: Used to see which columns fit.

    Returns:
        Columns by input, in the order of ``specs``. Whether they fit is for ``bind`` to say.

    Raises:
        MismatchError: ``given`` names an input the model lacks, or an input's column cannot be guessed.
    """
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4) or names[:1]
            raise MismatchError(
                f"--input maps {name}, but the model's inputs are {', '.join(names)}",
                f"say --input {near[0]}=COLUMN" if near else "",
            )
    found = {name: tuple(columns) for name, columns in given.items()}
    for name in names:
        column = None if name in found else _same_name(name, schema)
        if column is not None:
            found[name] = (column,)
    left = [spec for spec in specs if spec.name not in found]
    if left:
        used = {column for columns in found.values() for column in columns}
        fitting = _fitting(left[0], schema, used, options)
        if len(left) > 1 or len(fitting) != 1:
            raise _unmapped(left[0], schema, fitting)
        found[left[0].name] = (fitting[0],)
    return {name: found[name] for name in names}


def bind_all(
    specs: Sequence[TensorSpec],
    given: Mapping[str, tuple[str, ...]],
    schema: pa.Schema,
    options: BindingOptions | None = None,
) -> tuple[ColumnBinding, ...]:
    """Binds every input, guessing the columns of those not given; raises as its two steps do."""
    columns = guess_columns(specs, schema, given, options)
    return tuple(bind(spec, columns[spec.name], schema, options) for spec in specs)


def _same_name(name: str, schema: pa.Schema) -> str | None:
    if name in schema.names:
        return name
    alike = [column for column in schema.names if column.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _fitting(
    spec: TensorSpec, schema: pa.Schema, used: set[str], options: BindingOptions | None
) -> list[str]:
    fitting = []
    for column in schema:
        held = column_type(column.type)
        if column.name in used or held is None or held.form == "null":
            continue
        try:
            binding = bind(spec, (column.name,), schema, options)
        except MismatchError:
            continue
        if binding.kind is not ColumnKind.SCALARS:
            fitting.append(column.name)
    return fitting


def _unmapped(spec: TensorSpec, schema: pa.Schema, fitting: Sequence[str]) -> MismatchError:
    columns = [f"{column.name} {describe(column.type)}" for column in schema]
    more = len(columns) - SHOWN_COLUMNS
    listed = ", ".join(columns[:SHOWN_COLUMNS]) + (f" and {more} more" if more > 0 else "")
    folded = {column.casefold(): column for column in schema.names}
    near = [folded[name] for name in difflib.get_close_matches(spec.name.casefold(), folded, n=3, cutoff=0.5)]
    hint = f"say --input {spec.name}=COLUMN"
    hint += f"; the type fits: {', '.join(fitting[:SHOWN_COLUMNS])}" if fitting else "; no column's type fits"
    hint += f"; similar names: {', '.join(near)}" if near else ""
    return MismatchError(f"no column given for input {spec.name} ({wanted(spec)}) among: {listed}", hint)
