"""A wheel of the version that is running, for clusters whose nodes do not have it.

Ray installs a wheel on each node with ``pip install --target``, which would fetch and install
everything that it requires once more, Ray included. So this one requires nothing; what nodes must have
is in its file ``NEEDS``. Ray also knows a wheel by its file name alone, and serves the first one of
that name for good; a build tag made of the contents gives each its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..errors import ClusterError

__all__ = ["NEEDS", "pack_wheel", "package_files"]

NEEDS = "needs.txt"
"""In the wheel's ``dist-info``: one requirement a line, in pip's notation."""

_PACKAGE = "trtfleet"
_DIST_INFO = f"{_PACKAGE}-{__version__}.dist-info"
_HINT = "install trtfleet on the cluster's nodes and use --no-ship"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack_wheel(folder: Path) -> Path:
    """Writes the wheel of the running package into a folder.

    The same files give the same name, whenever and wherever they are packed.

    Args:
        folder: An existing folder, which the caller owns.

    Returns:
        The wheel, ``trtfleet-VERSION-1DIGEST-py3-none-any.whl``.

    Raises:
        ClusterError: The running package's files cannot be found, or are of another version.
    """
    root = Path(__file__).resolve().parent.parent
    try:
        contents = {name: path.read_bytes() for name, path in package_files(root).items()}
        contents |= _description()
    except OSError as error:
        raise ClusterError(f"cannot pack trtfleet: {error}", _HINT) from error
    digest = hashlib.sha256()
    for name, data in sorted(contents.items()):
        digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    build = f"1{digest.hexdigest()[:16]}"
    tags = f"Root-Is-Purelib: true\nTag: py3-none-any\nBuild: {build}\n"
    wheel = f"Wheel-Version: 1.0\nGenerator: {_PACKAGE}\n{tags}"
    contents[f"{_DIST_INFO}/WHEEL"] = wheel.encode()
    record = [f"{name},{_hash(data)},{len(data)}" for name, data in sorted(contents.items())]
    record.append(f"{_DIST_INFO}/RECORD,,")
    contents[f"{_DIST_INFO}/RECORD"] = ("\n".join(record) + "\n").encode()
    path = folder / f"{_PACKAGE}-{__version__}-{build}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    return path


def package_files(root: Path) -> dict[str, Path]:
    """The files of the package by their names in a wheel, be it installed or a checkout.

    Args:
        root: Folder of the package's ``__init__.py``.

    Raises:
        ClusterError: Neither an installation's record nor a checkout's ``pyproject.toml`` tells them, or they
            are of another version than the one that runs.
    """
    files = _of_checkout(root) if (root / "pyproject.toml").exists() else _of_installation(root)
    if f"{_PACKAGE}/__init__.py" not in files:
        raise ClusterError(f"cannot find the files of trtfleet {__version__} in {root}", _HINT)
    return files


def _of_checkout(root: Path) -> dict[str, Path]:
    project = tomllib.loads((root / "pyproject.toml").read_text())
    if project["project"]["version"] != __version__:
        raise ClusterError(
            f"{root} is version {project['project']['version']}, but {__version__} runs", "install it anew"
        )
    setup = project["tool"]["setuptools"]
    files = {}
    for package in setup["packages"]:
        inner = package.split(".")[1:]
        patterns = ["*.py", *setup["package-data"].get(package, [])]
        for path in sorted(path for pattern in patterns for path in root.joinpath(*inner).glob(pattern)):
            if path.is_file():
                files[f"{_PACKAGE}/{path.relative_to(root).as_posix()}"] = path
    return files


def _of_installation(root: Path) -> dict[str, Path]:
    # Of several installations on the path, the one beside the running files.
    for found in metadata.distributions(name=_PACKAGE, path=[str(root.parent)]):
        if found.version != __version__:
            raise ClusterError(
                f"trtfleet is installed as version {found.version}, but {__version__} runs", "install it anew"
            )
        own = [path for path in found.files or () if path.parts[0] == _PACKAGE and path.suffix != ".pyc"]
        return {path.as_posix(): Path(str(found.locate_file(path))) for path in own}
    return {}


def _description() -> dict[str, bytes]:
    """The ``dist-info`` without ``WHEEL`` and ``RECORD``."""
    try:
        known = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ClusterError(f"nothing says what trtfleet {__version__} needs", _HINT) from error
    needs = [need for need in known.requires or () if not re.search(r";.*\bextra\b", need)]
    python = known.metadata["Requires-Python"] or ">=3.11"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {_PACKAGE}",
        f"Version: {__version__}",
        f"Requires-Python: {python}",
    ]
    script = f"[console_scripts]\n{_PACKAGE} = {_PACKAGE}.jobs.cli:main\n"
    shipped = known.read_text(NEEDS)
    return {
        f"{_DIST_INFO}/METADATA": ("\n".join(lines) + "\n").encode(),
        f"{_DIST_INFO}/entry_points.txt": script.encode(),
        f"{_DIST_INFO}/{NEEDS}": (shipped or "".join(f"{need}\n" for need in needs)).encode(),
    }


def _hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
