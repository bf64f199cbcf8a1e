"""Fixtures for tests of whole jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs ``trtfleet ARGUMENTS...`` in this process, as the installed script does."""

    def run(*arguments: str | Path) -> Ran:
        from trtfleet.jobs.cli import main

        monkeypatch.setattr(sys, "argv", ["trtfleet", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        printed = capfd.readouterr()
        assert isinstance(exited.value.code, int)
        return Ran(exited.value.code, printed.out, printed.err)

    return run
