"""Paddle inference models become ONNX: converted once, by paddle2onnx in a process of its own, and kept."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ..datasets.storage import one_line
from ..errors import ModelError
from .paddle_files import PaddleFiles, is_paddle_model, os_errors

__all__ = ["Converter", "convert_paddle", "installed_converter", "is_paddle_model"]

# paddle2onnx's own optimizers are left out: one of them installs packages while it runs.
_OPTIONS = ("--opset_version", "17", "--optimize_tool", "None")
_RESULT = "model.onnx"
_LONGEST_REASON = 300

_DECORATION = re.compile(r"\x1b\[[0-9;]*m|^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\[Paddle2ONNX\]|\[(ERROR|INFO)\]")
# What follows a failure, in crash reports and tracebacks, without being it.
_NOISE = re.compile(
    r"[-=*\s.]*$|C\+\+ Traceback|Error Message Summary|FatalError: `Process abort|\[(Time|Signal)Info"
    r"|\[WARNING\]|\d+\s+\w+.*::|Traceback|UnboundLocalError.*onnx_model_str|.*Warning: |warnings\.warn"
)
_COMPLAINT = re.compile(r"\w*(error|exception|invalid|unsupported|failed)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Converter:
    """A program that converts Paddle models as paddle2onnx does.

    Attributes:
        command: How it starts; it understands ``--model_dir``, ``--model_filename``, ``--params_filename``,
            ``--save_file``, ``--opset_version`` and ``--optimize_tool``.
        version: Tells its results from those of other versions.
    """

    command: tuple[str, ...]
    version: str


def installed_converter() -> Converter:
    """The paddle2onnx of this Python; neither it nor Paddle is imported.

    Raises:
        ModelError: It, or Paddle, which it needs, is not installed.
    """
    missing = [name for name in ("paddle2onnx", "paddle") if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"Paddle models are converted by paddle2onnx: {' and '.join(missing)} not installed here",
            "pip install 'trtfleet[paddle]'",
        )
    # -P: the working folder must not offer modules of its own.
    command = (sys.executable, "-P", "-m", "paddle2onnx.command")
    return Converter(command=command, version=metadata.version("paddle2onnx"))


def convert_paddle(
    path: str | os.PathLike[str],
    cache_folder: str | os.PathLike[str] | None = None,
    converter: Converter | None = None,
) -> Path:
    """Converts a Paddle inference model to ONNX, or finds what an earlier call made of the same bytes.

    Results are kept by the SHA-256 of both files and the converter's version, and appear whole or not at all:
    any number of processes may convert at once.

    Args:
        path: A folder that holds exactly one model, or a ``.json`` or ``.pdmodel`` file with its
            ``.pdiparams`` beside it.
        cache_folder: Where results are kept; by default ``trtfleet/paddle`` in the user's cache folder.
            Created, for its owner alone, if there is none.
        converter: What converts; the installed paddle2onnx by default.

    Returns:
        The ONNX file, in the cache: not to be changed.

    Raises:
        ModelError: There is not exactly one model, one of its files is missing or damaged, paddle2onnx is
            not installed, fails or crashes, or the cache cannot be written.
    """
    try:
        return _convert(path, cache_folder, converter)
    except ModelError as error:
        raise ModelError(f"{os.fspath(path)}: {error.fact}", error.hint) from error.__cause__


def _convert(
    path: str | os.PathLike[str], cache_folder: str | os.PathLike[str] | None, converter: Converter | None
) -> Path:
    files = PaddleFiles.find(path)
    converter = converter or installed_converter()
    entry = hashlib.sha256("\0".join((files.digest(), converter.version, *_OPTIONS)).encode()).hexdigest()
    folder = Path(cache_folder) if cache_folder is not None else _default_cache_folder()
    result = folder / entry / _RESULT
    hint = "set XDG_CACHE_HOME to a folder with room that you may write to"
    with os_errors(f"the cache of converted models {folder} cannot be used", hint):
        if result.is_file():
            return result
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as scratch:
            made = Path(scratch).absolute() / entry
            made.mkdir()
            _run(converter, files, made / _RESULT)
            if files.have_changed():
                raise ModelError("changed while it was converted", "start again when it is complete")
            try:
                made.rename(folder / entry)
            except OSError:
                # Another process was faster; its result is as good.
                if not result.is_file():
                    raise
    return result


def _default_cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError as error:
            raise ModelError(
                "there is no home folder to keep converted models in", "set XDG_CACHE_HOME"
            ) from error
    return Path(base, "trtfleet", "paddle")


def _run(converter: Converter, files: PaddleFiles, result: Path) -> None:
    """Converts, in a process that may crash; what it leaves behind goes with the folder above the result."""
    scratch = str(result.parent.parent)
    command = [*converter.command, "--model_dir", os.path.abspath(files.network.parent)]
    command += ["--model_filename", files.network.name, "--params_filename", files.parameters.name]
    command += ["--save_file", str(result), *_OPTIONS]
    failed = f"cannot be converted by paddle2onnx {converter.version}"
    hint = "is it an inference model whose operators paddle2onnx knows? its own command says more"
    try:
        done = subprocess.run(
            command,
            cwd=scratch,
            env={**os.environ, "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ModelError(f"{failed}: it does not start: {one_line(error)}", hint) from error
    if done.returncode:
        raise ModelError(f"{failed}: {_ending(done.returncode)}: {_last_words(done.stdout)}", hint)
    if not result.is_file() or not result.stat().st_size:
        raise ModelError(f"{failed}: it wrote no model: {_last_words(done.stdout)}", hint)


def _ending(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _last_words(output: str) -> str:
    """The last line that says what went wrong, else the last one that says anything."""
    lines = [" ".join(_DECORATION.sub("", line).split()) for line in output.splitlines()]
    lines = [line for line in lines if not _NOISE.match(line)]
    complaints = [line for line in lines if _COMPLAINT.search(line)]
    words = (complaints or lines or ["it said nothing"])[-1]
    return words if len(words) <= _LONGEST_REASON else f"{words[: _LONGEST_REASON - 3]}..."
