"""What ``trtfleet submit`` starts on the head node: ``python -m trtfleet.jobs.submitted VERSION COMMAND...``.

It runs the command as the command line does. A job has one log for everything, so every line of the command's
stdout begins with a mark there, and the other end tells results from messages again.
"""

from __future__ import annotations

import io
import re
import sys
from importlib import metadata
from typing import BinaryIO, NoReturn, cast

from .. import __version__
from ..cluster.wheel import NEEDS
from ..errors import ClusterError

__all__ = ["RESULT_MARK", "check_needs", "mark_stdout", "run_submitted"]

RESULT_MARK = "out| "

_EXTRAS = re.compile(r"\[.*?\]")
# Distributions with the same modules.
_STAND_INS = {"onnxruntime": ("onnxruntime-gpu",)}


def run_submitted(arguments: list[str]) -> NoReturn:
    """Checks that this is the version that was submitted and that it has what it needs; runs the command.

    Args:
        arguments: The version, then the arguments of ``trtfleet``.
    """
    from .cli import main

    version, *command = arguments or [""]
    try:
        if version != __version__:
            raise ClusterError(
                f"version {version} of trtfleet was submitted, but the cluster runs {__version__}",
                "submit without --no-ship, or install that version on all nodes",
            )
        check_needs((metadata.distribution("trtfleet").read_text(NEEDS) or "").splitlines())
    except ClusterError as error:
        print(f"error: {error.fact}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.argv = ["trtfleet", *command]
    mark_stdout(sys.stdout.buffer)
    main()


def mark_stdout(sink: BinaryIO) -> None:
    """Lets every line that goes to ``sys.stdout`` begin with the mark, on its way to a stream."""
    raw = io.BufferedWriter(cast(io.RawIOBase, _Marked(sink)))
    sys.stdout = io.TextIOWrapper(raw, encoding="utf-8", line_buffering=True)


class _Marked(io.RawIOBase):
    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._begins_line = True

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # type: ignore[override]
        mark = RESULT_MARK.encode()
        for line in bytes(data).splitlines(keepends=True):
            self._sink.write(mark + line if self._begins_line else line)
            self._begins_line = line.endswith(b"\n")
        self._sink.flush()
        return len(data)


def check_needs(needs: list[str]) -> None:
    """Compares what is installed here with what the package needs.

    Args:
        needs: Requirements in pip's notation.

    Raises:
        ClusterError: Something is missing or too old.
    """
    from packaging.requirements import Requirement

    wrong = []
    for need in filter(None, map(str.strip, needs)):
        wanted = Requirement(need)
        names = (wanted.name, *_STAND_INS.get(wanted.name, ()))
        found = [version for name in names if (version := _version(name))]
        if not any(wanted.specifier.contains(version, prereleases=True) for version in found):
            wrong.append(f"{re.sub(_EXTRAS, '', need)} (there: {', '.join(found) or 'none'})")
    if wrong:
        raise ClusterError(
            f"the cluster's Python {sys.executable} lacks what trtfleet needs: {', '.join(wrong)}",
            "install it on all nodes; --python chooses another Python for the job's driver",
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    run_submitted(sys.argv[1:])
