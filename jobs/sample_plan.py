"""What is common to the plans of all jobs over a sample of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ..datasets.footers import Dataset
from ..datasets.storage import Storage
from .room import ActorOptions

__all__ = ["SamplePlan"]


class SamplePlan(Protocol):
    """A checked job over a sample of a dataset."""

    @property
    def options(self) -> ActorOptions:
        """Of its actors."""

    @property
    def dataset(self) -> Dataset:
        """Files and row groups."""

    @property
    def rows(self) -> np.ndarray:
        """int64[n], the sampled rows, by number in dataset order."""

    @property
    def batch_size(self) -> int:
        """Rows a batch."""

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Everything that decides what is found out about a unit."""

    @property
    def work(self) -> Storage:
        """Where that is kept until the job is done."""

    @property
    def label(self) -> str:
        """What it is about, for people."""

    @property
    def job(self) -> str:
        """What kind of job it is: the command's name."""

    def task(self, threads: int) -> Any:
        """What actors of so many threads are told."""
