"""From what the user typed to the files of a dataset: paths, globs, directories, Hive partitions."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

import pyarrow as pa

from ..errors import DatasetError, EmptyDatasetError, UsageError
from .storage import Entry, Storage, foreign_errors

__all__ = ["Format", "SourceFile", "discover", "partition_schema", "snapshot_digest"]

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_GLOB = re.compile(r"[*?\[]")


class Format(StrEnum):
    """How a file is laid out."""

    PARQUET = "parquet"
    IPC_FILE = "ipc-file"
    IPC_STREAM = "ipc-stream"


_BY_SUFFIX = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".arrow": Format.IPC_FILE,
    ".feather": Format.IPC_FILE,
    ".ipc": Format.IPC_FILE,
    ".arrows": Format.IPC_STREAM,
}
_BY_MAGIC = (
    (b"PAR1", Format.PARQUET),
    (b"ARROW1", Format.IPC_FILE),
    (b"\xff\xff\xff\xff", Format.IPC_STREAM),
)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One file of a dataset.

    Attributes:
        root: URL of the storage it was found under.
        path: Its path below the root.
        size_bytes: Its length when the job was planned.
        version: ETag or modification time when the job was planned.
        format: How it is laid out.
        partitions: Hive ``key=value`` pairs of its folders, values as text, None for the null partition.
    """

    root: str
    path: str
    size_bytes: int
    version: str
    format: Format
    partitions: tuple[tuple[str, str | None], ...] = ()

    @property
    def url(self) -> str:
        """The full name, for messages and records."""
        return f"{self.root}/{self.path}"


def discover(locations: Sequence[str]) -> list[SourceFile]:
    """Lists the files of a dataset, in dataset order: as given, and by path inside a folder or a glob.

    Names that begin with ``_`` or ``.`` below a folder are passed over, as Hive and Spark do. A folder's
    files with a known suffix are taken; where none has one, each is told by its first bytes.

    Raises:
        DatasetError: A location does not exist, cannot be listed, or a file is of no known format.
        UsageError: A location's scheme is not supported, or a glob is malformed.
        EmptyDatasetError: No file was found.
    """
    files: list[SourceFile] = []
    for location in locations:
        with foreign_errors(DatasetError, f"cannot list {location}"):
            files.extend(_discover_one(location))
    seen: set[str] = set()
    for file in files:
        if file.url in seen:
            raise DatasetError(f"{file.url} is in the dataset twice", "name each file once")
        seen.add(file.url)
    if not files:
        raise EmptyDatasetError(
            f"no Parquet or Arrow file in {', '.join(locations)}", "check the path or quote the glob"
        )
    return files


def _discover_one(location: str) -> list[SourceFile]:
    if location.startswith("file://"):
        location = Storage(location).root
    elif not location.startswith("s3://"):
        location = os.path.expanduser(location)
    glob = _GLOB.search(location)
    if glob and not os.path.exists(location):
        base, slash, _ = location[: glob.start()].rpartition("/")
        storage = Storage(base + slash or ".")
        pattern = _glob_regex(location[len(base + slash) :])
        entries = [e for e in storage.list() if pattern.fullmatch(e.path) and _visible(e.path)]
        return [_file(storage, entry) for entry in entries]
    parent, _, name = location.rstrip("/").rpartition("/")
    if location.startswith("s3://") and parent != "s3:/":
        single = Storage(parent)
        entry = single.head(name)
        if entry is not None and not location.endswith("/"):
            return [_file(single, entry)]
    elif os.path.isfile(location):
        single = Storage(os.path.dirname(os.path.abspath(location)))
        entry = single.head(os.path.basename(location))
        assert entry is not None
        return [_file(single, entry)]
    storage = Storage(location)
    if not storage.exists():
        raise DatasetError(f"{location} does not exist", "check the path")
    entries = [entry for entry in storage.list() if _visible(entry.path)]
    known = [entry for entry in entries if os.path.splitext(entry.path)[1].lower() in _BY_SUFFIX]
    return [_file(storage, entry) for entry in known or entries]


def _visible(path: str) -> bool:
    return not any(part.startswith(("_", ".")) and "=" not in part for part in path.split("/"))


def _glob_regex(pattern: str) -> re.Pattern[str]:
    """``*``, ``?``, ``[ab]`` and ``[!ab]`` stay inside one path component, ``**`` crosses them."""
    out: list[str] = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.DOTALL):
        if len(token) > 1 and token.startswith("["):
            negated = token[1] in "!^"
            out.append(("[^" if negated else "[") + re.sub(r"[\\[&~|]", r"\\\g<0>", token[1 + negated :]))
        else:
            special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
            out.append(special.get(token, re.escape(token)))
    try:
        return re.compile("".join(out))
    except re.error as error:
        raise UsageError(f"glob {pattern!r} cannot be read: {error}", "check its brackets") from error


def _file(storage: Storage, entry: Entry) -> SourceFile:
    suffix = os.path.splitext(entry.path)[1].lower()
    return SourceFile(
        root=storage.url,
        path=entry.path,
        size_bytes=entry.size_bytes,
        version=entry.version,
        format=_sniff(storage, entry) if suffix not in _BY_SUFFIX else _BY_SUFFIX[suffix],
        partitions=_hive(entry.path),
    )


def _sniff(storage: Storage, entry: Entry) -> Format:
    with storage.open_input(entry.path) as source:
        head = source.read(8)
    for magic, kind in _BY_MAGIC:
        if head.startswith(magic):
            return kind
    raise DatasetError(
        f"{storage.describe(entry.path)} is neither Parquet nor Arrow IPC (it starts with {head!r})",
        "convert it to Parquet first",
    )


def _hive(path: str) -> tuple[tuple[str, str | None], ...]:
    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return tuple((key, None if value == _HIVE_NULL else unquote(value)) for key, _, value in pairs)


def partition_schema(files: Iterable[SourceFile]) -> pa.Schema:
    """The columns that Hive folders add: int64 when every value is a whole number, else string."""
    values: dict[str, list[str]] = {}
    for file in files:
        for key, value in file.partitions:
            values.setdefault(key, []).extend([] if value is None else [value])
    return pa.schema(
        [
            pa.field(
                key, pa.int64() if all(re.fullmatch(r"-?[0-9]{1,18}", v) for v in texts) else pa.string()
            )
            for key, texts in values.items()
        ]
    )


def snapshot_digest(files: Iterable[SourceFile]) -> str:
    """Identifies a dataset as it stands: every file's name, size and version, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.url}\0{file.size_bytes}\0{file.version}\n".encode())
    return digest.hexdigest()
