"""Asks TensorRT's parser which nodes of a model it takes, in a process that a crash does not take along."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import onnx

from ...errors import BackendError

__all__ = ["Answer", "ParserProcess", "SupportQuery"]

_SILENCE_S = 120.0
_WORKER = "trtfleet.trt_actors.partition.ask_worker"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the parser says of one model.

    Attributes:
        supported: Whether it takes the whole model.
        unsupported: Nodes outside the subgraphs that it takes. After one error it often counts nearly all
            nodes as such: no verdict on each.
        errors: Nodes that it named in an error, with its words; -1 where it named none.
        sizes: Inputs of a supported model whose values decide a shape; no range of shapes tells
            TensorRT what to build for.
        crashed: Whether it crashed, or did not answer in time.
    """

    supported: bool
    unsupported: tuple[int, ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    sizes: tuple[str, ...] = ()
    crashed: bool = False


class SupportQuery(Protocol):
    """Whoever can tell what TensorRT takes."""

    def ask(self, model: onnx.ModelProto) -> Answer:
        """Says which nodes of a model are supported."""


class ParserProcess:
    """The real parser of one flavour in a process of its own, started at the first question.

    Use as a context manager.

    Args:
        flavour: Its name.
        silence_s: How long an answer may take.
    """

    def __init__(self, flavour: str, silence_s: float = _SILENCE_S) -> None:
        self._flavour = flavour
        self._silence_s = silence_s
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="trtfleet-ask-")
        self.questions = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def ask(self, model: onnx.ModelProto) -> Answer:
        """Asks about one model; a crash of the parser is an answer too.

        Raises:
            BackendError: The flavour is not installed.
        """
        self.questions += 1
        path = Path(self._folder.name, "model.onnx")
        path.write_bytes(model.SerializeToString())
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        except OSError:
            self._stop()
            return Answer(supported=False, crashed=True)
        found = self._read(process)
        if found is None:
            self._stop()
            return Answer(supported=False, crashed=True)
        return Answer(
            supported=found["supported"],
            unsupported=tuple(found["unsupported"]),
            errors=tuple((int(node), text) for node, text in found["errors"]),
            sizes=tuple(found["sizes"]),
        )

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, self._flavour],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._process = process
        if self._read(process) is None:
            self._stop()
            raise BackendError(
                f"the process that asks {self._flavour}'s parser does not start",
                f"does `python -m {_WORKER} {self._flavour}` work?",
            )
        return process

    def _read(self, process: subprocess.Popen[str]) -> dict[str, Any] | None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], self._silence_s)
        line = process.stdout.readline() if ready else ""
        return json.loads(line) if line.endswith("\n") else None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass
