"""Images from a column to an engine's answers when the device decodes them: the same rows as on the CPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper
from trtfleet.datasets.bindings import BindingOptions, bind
from trtfleet.datasets.reading import Block
from trtfleet.datasets.signature import TensorSpec
from trtfleet.tests.trt_actors.runtime.image_doubles import decoder_on, encoded, picture
from trtfleet.tests.trt_actors.runtime.machine import Machine
from trtfleet.tests.trt_actors.runtime.networks import cut_up, info, make
from trtfleet.trt_actors.batches import BadInput
from trtfleet.trt_actors.feed import Feed

_SIDE = 16
_BAD = (3, 11)


def network() -> onnx.ModelProto:
    return make(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats"], ["y"], axes=[1, 2], keepdims=0),
        ],
        [info("x", TensorProto.UINT8, ["N", _SIDE, _SIDE, 3])],
        [info("y", TensorProto.FLOAT, ["N", 3])],
        {},
    )


def images() -> pa.RecordBatch:
    forms = ["JPEG", "PNG"]
    rows = [encoded(picture(20 + row, 30, row), forms[row % 5 == 2]) for row in range(20)]
    for row in _BAD:
        rows[row] = b"nonsense"
    return pa.record_batch({"id": np.arange(20), "image": pa.array(rows, pa.binary())})


def answers(*, on_device: bool) -> tuple[list[int], np.ndarray, list[int]]:
    """Ids, results and bad rows; where the device decodes, it must have decoded what it can."""
    table, model, machine = images(), network(), Machine(lazy=True)
    spec = TensorSpec(name="x", dtype=np.dtype(np.uint8), row_shape=(_SIDE, _SIDE, 3))

    class Task:
        keep = ("id",)
        threads = 2
        bindings = (bind(spec, ["image"], table.schema, BindingOptions()),)

    engine = machine.engine(model, cut_up(model, set())).open()
    engine.full_rows = 4
    decoder = decoder_on(machine.device)[0] if on_device else None
    slot, bad = engine.slot(), list[BadInput]()
    ids: list[int] = []
    found = []
    with ThreadPoolExecutor(2) as pool:
        feed = Feed(Task(), None, pool, images=decoder)  # type: ignore[arg-type]
        blocks = (Block(batch=table.slice(at, 5), rows=np.arange(at, at + 5)) for at in range(0, 20, 5))
        for batch in feed.batches(blocks, 4, bad):
            batch.stage(slot)
            engine.enqueue(slot, len(batch))
            engine.wait(slot)
            found.append(slot.outputs["y"].copy())
            ids.extend(batch.joined(arrays=False).kept["id"].to_pylist())
    if decoder is not None:
        assert (decoder.on_device, decoder.on_host) == (14, 6)
        decoder.close()
    machine.close()
    return ids, np.concatenate(found), [row.row for row in bad]


def test_rows_decoded_on_the_device_are_those_decoded_on_the_cpu() -> None:
    ids, values, bad = answers(on_device=False)
    assert ids == [row for row in range(20) if row not in _BAD]
    assert bad == list(_BAD)
    on_device = answers(on_device=True)
    assert (on_device[0], on_device[2]) == (ids, bad)
    np.testing.assert_allclose(on_device[1], values, atol=1.0)
