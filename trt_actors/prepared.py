"""A network ready for a runtime; apart from what makes it, so that actors need not load the ONNX library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from ..datasets.signature import TensorSpec

__all__ = ["Prepared"]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model ready for a runtime.

    Attributes:
        model_bytes: The serialized model; the same bytes for the same arguments of `prepare`.
        external_folder: Where the external data lies that the model refers to, or None when it has none.
        inputs: The inputs, named and ordered as in the model, with the dtype and layout of the stored data.
        outputs: The outputs, in the order in which the runtime returns them.
    """

    model_bytes: bytes = field(repr=False)
    external_folder: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``model_bytes`` in hex; it does not cover external data, which `Model.digest` does."""
        return hashlib.sha256(self.model_bytes).hexdigest()
