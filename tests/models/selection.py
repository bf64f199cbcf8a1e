"""Which networks an ordinary run of the tests takes, and which only one with ``--slow``."""

from __future__ import annotations

from typing import Any

import pytest

from .zoo import Family, names

__all__ = ["parameters"]

_SLOW = {"light_vgg19", "light_bvlc_alexnet", "light_zfnet512"}
"""A quarter of a gigabyte of weights and more; what they are made of is in networks that are always taken."""


def parameters(family: Family | None = None) -> list[Any]:
    """All networks, or those of one family, to parametrize tests with."""
    return [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in names(family)]
