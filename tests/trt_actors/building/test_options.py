"""Build options and profiles: what is refused, and what makes another engine."""

from __future__ import annotations

from typing import Any

import pytest
from trtfleet.errors import UsageError
from trtfleet.trt_actors.building.options import BuildOptions, Profile


def test_a_profile_is_read_as_it_is_written() -> None:
    profile = Profile.parse("ids=1x16,8x64,32x256")
    assert (profile.name, profile.min, profile.opt, profile.max) == ("ids", (1, 16), (8, 64), (32, 256))
    assert str(profile) == "ids=1x16,8x64,32x256"


def test_a_name_may_contain_an_equals_sign() -> None:
    assert Profile.parse("a=b=1,2,3").name == "a=b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ids", "malformed"),
        ("ids=1x16", "malformed"),
        ("ids=1x16,8x64", "malformed"),
        ("=1,2,3", "malformed"),
        ("ids=1xN,2x2,3x3", "malformed"),
        ("ids=-1x2,2x2,3x3", "malformed"),
        ("ids=4x16,2x64,32x256", "min > opt"),
        ("ids=1x16,64x64,32x256", "opt > max"),
        ("ids=1x16,8,32x256", "different ranks"),
    ],
)
def test_malformed_profiles_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Profile.parse(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bf16"}, "'bf16' is unknown"),
        ({"max_batch_size": 0}, "max_batch_size must be >= 1, got 0"),
        ({"min_subgraph_size": 0}, "min_subgraph_size must be >= 1, got 0"),
        ({"workspace_size": -1}, "workspace_size must be >= 0, got -1"),
        ({"optimization_level": 6}, "optimization_level must be 0 to 5, got 6"),
        ({"hardware_compatible": "all"}, "'all' is unknown"),
        ({"profiles": (Profile.parse("a=1,2,3"), Profile.parse("a=1,2,4"))}, "'a' has two profiles"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**options)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"max_batch_size": 8},
        {"workspace_size": 1 << 20},
        {"min_subgraph_size": 5},
        {"profiles": (Profile.parse("a=1,2,3"),)},
        {"optimization_level": 1},
        {"version_compatible": True},
        {"hardware_compatible": "ampere-plus"},
        {"exclude_ops": ("TopK",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_is_part_of_the_identity(change: dict[str, Any]) -> None:
    assert BuildOptions(**change).as_identity() != BuildOptions().as_identity()


def test_order_and_repetition_make_no_other_engine() -> None:
    one = BuildOptions(exclude_ops=("A", "B"), profiles=(Profile.parse("a=1,2,3"), Profile.parse("b=1,2,3")))
    other = BuildOptions(
        exclude_ops=("B", "A", "B"), profiles=(Profile.parse("b=1,2,3"), Profile.parse("a=1,2,3"))
    )
    assert one.as_identity() == other.as_identity()
