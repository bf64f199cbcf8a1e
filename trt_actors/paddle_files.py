"""The two files of a Paddle inference model: found from a path, and checked before anything reads them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..datasets.storage import one_line
from ..errors import ModelError
from .paddle_parameters import check_parameters

__all__ = ["PaddleFiles", "is_paddle_model", "os_errors"]

_NETWORKS = (".json", ".pdmodel")
_PARAMETERS = ".pdiparams"
_LFS_POINTER = b"version https://git-lfs"


def is_paddle_model(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a Paddle model, whole or not, judged by names alone.

    That is a ``.json``, ``.pdmodel`` or ``.pdiparams`` file, or a folder that holds one of the latter two.
    `PaddleFiles.find` says what is wrong with a model that is not whole.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return path.suffix in (*_NETWORKS, _PARAMETERS)
        return any(file.suffix in (".pdmodel", _PARAMETERS) for file in path.iterdir())
    except (OSError, ValueError):
        return False


@dataclass(frozen=True, kw_only=True)
class PaddleFiles:
    """A Paddle inference model.

    Attributes:
        network: The ``.json`` or ``.pdmodel`` file.
        parameters: The ``.pdiparams`` file beside it.
        stamps: Size in bytes and modification time in ns of either when it was found.
    """

    network: Path
    parameters: Path
    stamps: tuple[tuple[int, int], ...]

    @classmethod
    def find(cls, path: str | os.PathLike[str]) -> Self:
        """The model that a path names: a folder with exactly one, or a ``.json`` or ``.pdmodel`` file.

        Raises:
            ModelError: There is not exactly one model, or one of its files is missing or plainly damaged.
        """
        network = _network_file(Path(path))
        parameters = network.with_suffix(_PARAMETERS)
        found = cls(network=network, parameters=parameters, stamps=_stamps(network, parameters))
        for file in (network, parameters):
            _check(file)
        with os_errors("cannot be read", "check the permissions of both files"):
            check_parameters(network, parameters)
        return found

    def have_changed(self) -> bool:
        """Whether either file is another than when it was found."""
        return _stamps(self.network, self.parameters) != self.stamps

    def digest(self) -> str:
        """SHA-256 in hex over the format and the bytes of both files."""
        digest = hashlib.sha256(self.network.suffix.encode())
        with os_errors("cannot be read", "check the permissions of both files"):
            for path in (self.network, self.parameters):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@contextmanager
def os_errors(doing: str, hint: str) -> Iterator[None]:
    """Turns what the operating system refuses inside the block into `ModelError`."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{doing}: {one_line(error)}", hint) from error


def _network_file(path: Path) -> Path:
    """The file that describes the network."""
    if path.is_dir():
        return _only_network(path)
    if path.suffix == _PARAMETERS:
        raise ModelError("holds only parameters", "name the .json or .pdmodel file beside it")
    if path.suffix not in _NETWORKS:
        raise ModelError(
            "is no Paddle model", "name a folder, or a .json or .pdmodel file beside its .pdiparams"
        )
    return path


def _only_network(folder: Path) -> Path:
    with os_errors("cannot be read", "check the permissions of that path"):
        files = sorted(folder.iterdir())
    names = {file.name for file in files}
    networks = [file for file in files if file.suffix in _NETWORKS]
    whole = [file for file in networks if f"{file.stem}{_PARAMETERS}" in names]
    if len(whole) == 1:
        return whole[0]
    if whole:
        listed = ", ".join(file.name for file in whole)
        raise ModelError(f"holds {len(whole)} Paddle models: {listed}", "name one of these files")
    parts = [file.name for file in files if file.suffix in (*_NETWORKS, _PARAMETERS)]
    if parts:
        raise ModelError(
            f"holds no whole Paddle model, only {', '.join(parts)}",
            "put NAME.json or NAME.pdmodel and NAME.pdiparams there, as paddle.jit.save writes them",
        )
    raise ModelError(
        f"is a folder {'without a Paddle model' if files else 'without any file'}",
        "name an .onnx file, or a folder with a .json or .pdmodel file and its .pdiparams",
    )


def _stamps(network: Path, parameters: Path) -> tuple[tuple[int, int], ...]:
    found = []
    for file in (network, parameters):
        try:
            status = file.stat()
        except FileNotFoundError as error:
            if file == network:
                raise ModelError("does not exist", "check the path of the model") from error
            raise ModelError(
                f"has no {parameters.name} beside it", "keep both files of a model in one folder"
            ) from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{file.name} cannot be read: {one_line(error)}", "check that path") from error
        found.append((status.st_size, status.st_mtime_ns))
    return tuple(found)


def _check(file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"{file.name} is not a regular file", "give files as paddle.jit.save writes them")
    with (
        os_errors(f"{file.name} cannot be read", "check the permissions of that path"),
        file.open("rb") as opened,
    ):
        start = opened.read(len(_LFS_POINTER))
    if not start:
        raise ModelError(f"{file.name} is empty (0 bytes)", "copy it again, it may be truncated")
    if start == _LFS_POINTER:
        raise ModelError(f"{file.name} is a Git LFS pointer, not the file it stands for", "run git lfs pull")
