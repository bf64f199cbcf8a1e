"""From a location to files: order, globs, Hive folders, formats; on disk and on S3 alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.datasets.discovery import Format, SourceFile, discover, partition_schema, snapshot_digest
from trtfleet.datasets.storage import Storage
from trtfleet.errors import DatasetError, EmptyDatasetError, UsageError

Fill = Callable[..., Storage]


def parquet_bytes(rows: int = 1) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": np.arange(rows)}), sink)
    return sink.getvalue().to_pybytes()


def ipc_bytes(kind: Format) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    maker = pa.ipc.new_file if kind is Format.IPC_FILE else pa.ipc.new_stream
    with maker(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def fill(place: str) -> Fill:
    """Puts objects with the same content at the place."""

    def fill(*paths: str, content: bytes = b"PAR1") -> Storage:
        storage = Storage(place)
        for path in paths:
            storage.put(path, content)
        return storage

    return fill


def found(*locations: str) -> list[str]:
    return [file.path for file in discover(locations)]


class TestFolders:
    def test_recursive_in_order_without_hidden_names(self, fill: Fill, place: str) -> None:
        fill("b.parquet", "a/2.parquet", "a/10.parquet", "a.parquet", "c/d/e.parquet")
        fill(
            "_SUCCESS", "_x/a.parquet", ".git/a.parquet", "a/.b.parquet", "a/_metadata", "c/_tmp/x/y.parquet"
        )
        expected = ["a.parquet", "a/10.parquet", "a/2.parquet", "b.parquet", "c/d/e.parquet"]
        assert found(place) == found(f"{place}/") == expected
        assert found(f"{place}/a") == ["10.parquet", "2.parquet"]

    def test_a_folder_named_as_hidden_is_read_when_it_is_named(self, fill: Fill, place: str) -> None:
        fill("_tmp/a.parquet")
        assert found(f"{place}/_tmp") == found(f"{place}/_tmp/*.parquet") == ["a.parquet"]

    def test_a_hive_key_may_begin_with_an_underscore(self, fill: Fill, place: str) -> None:
        fill("_day=1/a.parquet")
        assert discover([place])[0].partitions == (("_day", "1"),)

    def test_files_with_known_suffixes_only(self, fill: Fill, place: str) -> None:
        fill("a.parquet", "b.PARQUET", "c.pq", "notes.txt", "d.parquet.crc", "part-0")
        assert found(place) == ["a.parquet", "b.PARQUET", "c.pq"]

    def test_entries_know_their_size_and_version(self, fill: Fill, place: str) -> None:
        storage = fill("a.parquet", content=parquet_bytes())
        (file,) = discover([place])
        entry = storage.head("a.parquet")
        assert entry is not None
        assert (file.size_bytes, file.version) == (entry.size_bytes, entry.version)
        assert file.url == f"{place}/a.parquet"
        assert file.root == place
        assert file.partitions == ()

    def test_several_locations_in_the_order_given(self, fill: Fill, place: str) -> None:
        fill("b/1.parquet", "b/2.parquet", "a/1.parquet", "c.parquet")
        files = discover([f"{place}/c.parquet", f"{place}/b", f"{place}/a/*.parquet"])
        assert [file.url.removeprefix(f"{place}/") for file in files] == [
            "c.parquet",
            "b/1.parquet",
            "b/2.parquet",
            "a/1.parquet",
        ]

    @pytest.mark.parametrize("again", ["a/x.parquet", "a", "a/*", "a/../a"])
    def test_a_file_named_twice(self, place: str, fill: Fill, again: str) -> None:
        if place.startswith("s3") and ".." in again:
            pytest.skip("S3 keys have no parent folders")
        fill("a/x.parquet")
        with pytest.raises(DatasetError, match=r"a/x\.parquet is in the dataset twice"):
            discover([f"{place}/a/x.parquet", f"{place}/{again}"])


class TestSingleFiles:
    @pytest.mark.parametrize("name", ["a.parquet", "_a.parquet", "a b%20#ä.parquet", ".hidden/a.parquet"])
    def test_any_name(self, fill: Fill, place: str, name: str) -> None:
        fill(name, "other.parquet")
        (file,) = discover([f"{place}/{name}"])
        assert file.url == f"{place}/{name}"
        with Storage(file.root).open_input(file.path) as source:
            assert source.read() == b"PAR1"

    def test_any_suffix_if_its_bytes_tell(self, fill: Fill, place: str) -> None:
        fill("data", content=parquet_bytes())
        assert discover([f"{place}/data"])[0].format is Format.PARQUET

    def test_local_forms(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "a b"
        folder.mkdir()
        (folder / "x%.parquet").write_bytes(b"PAR1")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", str(tmp_path))
        file_url = f"file://{tmp_path}/a%20b"
        forms = [
            "x%.parquet",
            "./x%.parquet",
            "../a b/x%.parquet",
            "~/a b/x%.parquet",
            f"{folder}/x%.parquet",
        ]
        forms += [
            f"{file_url}/x%25.parquet",
            file_url,
            f"{file_url}/*.parquet",
            "~/a b",
            "~/a b/*",
            ".",
            "*",
            "./*",
        ]
        assert {discover([form])[0].url for form in forms} == {f"{folder}/x%.parquet"}

    def test_a_file_whose_name_looks_like_a_glob(self, tmp_path: Path) -> None:
        for name in ("a[1].parquet", "a1.parquet"):
            (tmp_path / name).write_bytes(b"PAR1")
        assert found(f"{tmp_path}/a[1].parquet") == ["a[1].parquet"]

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "a.parquet").write_bytes(b"PAR1")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "sub").symlink_to(tmp_path / "real")
        assert found(str(tmp_path / "data")) == ["sub/a.parquet"]


class TestGlobs:
    FILES = (
        "x1.parquet",
        "x2.parquet",
        "x10.parquet",
        "y.parquet",
        "a/x1.parquet",
        "a/b/x1.parquet",
        "é+(.parquet",
    )

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("*.parquet", ["x1.parquet", "x10.parquet", "x2.parquet", "y.parquet", "é+(.parquet"]),
            ("x?.parquet", ["x1.parquet", "x2.parquet"]),
            ("x[12].parquet", ["x1.parquet", "x2.parquet"]),
            ("x[0-1]*.parquet", ["x1.parquet", "x10.parquet"]),
            ("[!x]*.parquet", ["y.parquet", "é+(.parquet"]),
            ("[^x]*.parquet", ["y.parquet", "é+(.parquet"]),
            ("*/x1.parquet", ["a/x1.parquet"]),
            ("**/x1.parquet", ["a/b/x1.parquet", "a/x1.parquet", "x1.parquet"]),
            ("a/**", ["b/x1.parquet", "x1.parquet"]),
            ("a/*/*", ["b/x1.parquet"]),
            ("?+(.parquet", ["é+(.parquet"]),
            ("x[1\\].parquet", ["x1.parquet"]),
            ("x[[1].parquet", ["x1.parquet"]),
        ],
    )
    def test_patterns(self, fill: Fill, place: str, pattern: str, expected: list[str]) -> None:
        fill(*self.FILES, "_x1.parquet", "a/.x1.parquet")
        assert found(f"{place}/{pattern}") == expected

    def test_paths_count_from_the_last_folder_before_the_pattern(self, fill: Fill, place: str) -> None:
        fill("a/k=1/x.parquet", "a/k=2/x.parquet")
        files = discover([f"{place}/a/k=*/x.parquet"])
        assert [(file.root, file.path) for file in files] == [
            (f"{place}/a", "k=1/x.parquet"),
            (f"{place}/a", "k=2/x.parquet"),
        ]

    def test_relative_with_a_dot_in_front(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "..ab").mkdir()
        (tmp_path / "..ab" / "x.parquet").write_bytes(b"PAR1")
        assert found("..ab/x*") == ["x.parquet"]
        assert found("./..ab/*.parquet") == ["x.parquet"]

    def test_no_match(self, fill: Fill, place: str) -> None:
        fill("a.parquet")
        with pytest.raises(EmptyDatasetError, match=r"no Parquet or Arrow file in .*z\*"):
            discover([f"{place}/z*"])

    def test_brackets_that_mean_nothing(self, fill: Fill, place: str) -> None:
        fill("a.parquet")
        with pytest.raises(UsageError, match=r"\[z-a\]"):
            discover([f"{place}/[z-a].parquet"])


class TestHive:
    def test_values(self, fill: Fill, place: str) -> None:
        fill("day=2024-01-02/n=7/a.parquet", "day=__HIVE_DEFAULT_PARTITION__/n=-3/a.parquet")
        fill("day=a%2Fb%20%25=c/n=__HIVE_DEFAULT_PARTITION__/a.parquet", "day=/n=0/a.parquet")
        files = discover([place])
        assert [file.partitions for file in files] == [
            (("day", ""), ("n", "0")),
            (("day", "2024-01-02"), ("n", "7")),
            (("day", None), ("n", "-3")),
            (("day", "a/b %=c"), ("n", None)),
        ]
        assert partition_schema(files) == pa.schema([("day", pa.string()), ("n", pa.int64())])

    @pytest.mark.parametrize(
        ("values", "kind"),
        [
            (["1", "-2", "0"], pa.int64()),
            (["001", "2"], pa.int64()),
            (["1", "x"], pa.string()),
            (["1.5"], pa.string()),
            (["1 "], pa.string()),
            (["9" * 18], pa.int64()),
            (["9" * 19], pa.string()),
            (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int64()),
            (["١"], pa.string()),
        ],
    )
    def test_types(self, tmp_path: Path, values: list[str], kind: pa.DataType) -> None:
        for value in values:
            Storage(tmp_path).put(f"k={value}/a.parquet", b"PAR1")
        assert partition_schema(discover([str(tmp_path)])) == pa.schema([("k", kind)])

    def test_a_file_name_is_no_partition(self, fill: Fill, place: str) -> None:
        fill("a=1/b=2.parquet")
        assert discover([place])[0].partitions == (("a", "1"),)


class TestFormats:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("a.parquet", Format.PARQUET),
            ("a.pq", Format.PARQUET),
            ("a.arrow", Format.IPC_FILE),
            ("a.feather", Format.IPC_FILE),
            ("a.ipc", Format.IPC_FILE),
            ("a.arrows", Format.IPC_STREAM),
            ("a.Parquet", Format.PARQUET),
        ],
    )
    def test_by_suffix(self, tmp_path: Path, name: str, expected: Format) -> None:
        (tmp_path / name).write_bytes(b"")
        assert discover([str(tmp_path)])[0].format is expected

    @pytest.mark.parametrize("kind", [Format.PARQUET, Format.IPC_FILE, Format.IPC_STREAM])
    def test_by_bytes(self, fill: Fill, place: str, kind: Format) -> None:
        fill("part-0", "part-1", content=parquet_bytes() if kind is Format.PARQUET else ipc_bytes(kind))
        assert [file.format for file in discover([place])] == [kind, kind]

    @pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR", b"ORC"])
    def test_neither(self, fill: Fill, place: str, content: bytes) -> None:
        fill("data.csv", content=content)
        for location in (place, f"{place}/data.csv"):
            with pytest.raises(DatasetError, match=r"data\.csv is neither Parquet nor Arrow") as raised:
                discover([location])
            assert raised.value.hint == "convert it to Parquet first"


class TestErrors:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="none does not exist"):
            discover([str(tmp_path / "none")])
        with pytest.raises(EmptyDatasetError, match="no Parquet or Arrow file in"):
            discover([str(tmp_path)])

    def test_nothing_there_on_s3(self, bucket: str) -> None:
        with pytest.raises(EmptyDatasetError):
            discover([f"{bucket}/none"])
        with pytest.raises(EmptyDatasetError):
            discover([bucket])
        with pytest.raises(DatasetError, match="cannot list s3://not-there/x") as raised:
            discover(["s3://not-there/x"])
        assert not isinstance(raised.value, EmptyDatasetError)
        assert raised.value.hint == "create the bucket first"

    def test_other_schemes(self) -> None:
        with pytest.raises(UsageError, match="gs:// is not supported"):
            discover(["gs://bucket/x"])


def test_the_digest_tells_every_change(fill: Fill, place: str) -> None:
    storage = fill("a.parquet", "b.parquet")
    first = discover([place])
    assert snapshot_digest(first) == snapshot_digest(discover([place]))
    digests = {
        snapshot_digest(first),
        snapshot_digest(first[:1]),
        snapshot_digest(first[::-1]),
        snapshot_digest([]),
    }
    assert len(digests) == 4
    storage.put("a.parquet", b"PAR2")
    digests.add(snapshot_digest(discover([place])))
    storage.put("c.parquet", b"")
    digests.add(snapshot_digest(discover([place])))
    assert len(digests) == 6


def test_the_digest_depends_on_the_place_of_every_byte() -> None:
    def file(path: str, version: str) -> SourceFile:
        return SourceFile(root="r", path=path, size_bytes=1, version=version, format=Format.PARQUET)

    assert snapshot_digest([file("a", "b1")]) != snapshot_digest([file("a1", "b")])
