"""Which networks an ordinary run of the tests takes, and which only one with ``--slow``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from .zoo import Family, names

__all__ = ["parameters"]

_SLOW = {"light_vgg19", "light_bvlc_alexnet", "light_zfnet512"}
"""A quarter of a gigabyte of weights and more; what they are made of is in networks that are always taken."""


def parameters(family: Family | None = None, *, also_slow: Collection[str] = ()) -> list[Any]:
    """Networks to parametrize tests with.

    Args:
        family: All of them without it.
        also_slow: Those that only a run with ``--slow`` takes in these tests.
    """
    slow = _SLOW.union(also_slow)
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names(family)]
