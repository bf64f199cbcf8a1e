"""Identities: one key for one engine, and differences that name what tells two apart."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.trt_actors.cache.identity import ABSENT, Identity, in_words

_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.sampled_from(["", "1", "absent"]),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
_IDENTITIES = st.builds(
    Identity,
    model=st.sampled_from(["m", "n"]),
    network=st.sampled_from(["", "n"]),
    options=st.dictionaries(st.sampled_from(["precision", "model", "level"]), _PLAIN),
    calibration=st.none() | st.sampled_from(["", "none", "c"]),
    flavour=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    version=st.just("1"),
    compute_capability=st.just("9.0"),
    gpu=st.sampled_from(["any", "H200"]),
    plugins=st.sampled_from([(), ("p",), ("p", "q"), ("q", "p")]),
)


@given(_IDENTITIES, _IDENTITIES)
def test_keys_are_equal_where_nothing_differs(one: Identity, other: Identity) -> None:
    assert (one.key == other.key) == (one.differences(other) == [])
    assert one.differences(one) == []
    mirrored = [(name, theirs, ours) for name, ours, theirs in other.differences(one)]
    assert sorted(map(repr, one.differences(other))) == sorted(map(repr, mirrored))


@given(_IDENTITIES)
def test_a_round_trip_keeps_the_key(one: Identity) -> None:
    again = Identity.from_json(json.loads(json.dumps(one.as_json())))
    assert again == one
    assert again.key == one.key
    assert pickle.loads(pickle.dumps(one)).key == one.key
    assert hash(again) == hash(one)


def test_the_key_is_a_digest_that_never_changes() -> None:
    one = Identity(model="m", flavour="tensorrt", version="11.0", compute_capability="9.0", gpu="H200")
    assert one.key == "8087f68d8f13eef2474a04e3782c12cec9f554c6628e7499eef4fbf7aac8ba63"
    assert replace(one, gpu="H100").key != one.key


def test_the_order_of_options_and_plugins_means_nothing() -> None:
    def make(options: dict[str, Any], plugins: tuple[str, ...]) -> Identity:
        return Identity(
            model="m",
            options=options,
            flavour="f",
            version="1",
            compute_capability="9.0",
            gpu="g",
            plugins=plugins,
        )

    one, other = make({"a": 1, "b": (2, 3)}, ("p", "q")), make({"b": [2, 3], "a": 1}, ("q", "p"))
    assert one == other
    assert one.key == other.key


def test_later_changes_to_the_options_given_change_nothing(identity: Identity) -> None:
    options = {"profiles": ["x=1,2,3"]}
    one = replace(identity, options=options)
    before = one.key
    options["profiles"].append("y=1,2,3")
    assert one.key == before


def test_an_option_that_one_side_lacks_is_a_difference(identity: Identity) -> None:
    other = replace(identity, options={**identity.options, "new": None})
    assert identity.differences(other) == [("options.new", ABSENT, None)]
    assert other.differences(identity) == [("options.new", None, ABSENT)]


def test_what_is_not_plain_is_refused(identity: Identity) -> None:
    with pytest.raises(TypeError):
        replace(identity, options={"shape": object()})
    with pytest.raises(ValueError):
        replace(identity, options={"scale": float("nan")})


def test_differences_in_words(identity: Identity) -> None:
    other = replace(
        identity,
        model="0123456789abcdef" * 4,
        calibration=None,
        options={**identity.options, "precision": "fp32", "profiles": ["x=1,2,3"], "max_batch_size": 8},
    )
    assert in_words(identity.differences(other)).split("; ") == [
        "model is 0123456789ab there, aaaaaaaaaaaa is wanted",
        "calibration is none there, cccccccccccc is wanted",
        "max_batch_size is 8 there, 64 is wanted",
        "precision is fp32 there, fp16 is wanted",
        "profiles is [x=1,2,3] there, [] is wanted",
    ]
    assert in_words([]) == ""
    many = [(f"f{number}", 1, 2) for number in range(9)]
    assert in_words(many).endswith("f5 is 2 there, 1 is wanted; and 3 more fields differ")


@pytest.mark.parametrize(
    "change",
    [
        {"model": 3},
        {"plugins": "p"},
        {"plugins": [3]},
        {"options": []},
        {"calibration": 3},
        {"format": "1"},
        {"unknown": "x"},
    ],
    ids=str,
)
def test_malformed_values_are_refused(identity: Identity, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Identity.from_json({**identity.as_json(), **change})
    with pytest.raises(ValueError):
        Identity.from_json(change)
