"""The storage's few operations, the same on disk and on S3."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from trtfleet.datasets.storage import Entry, Storage, foreign_errors, one_line
from trtfleet.errors import DatasetError, OutputError, UsageError

# `+` and `%20` are where URL decoding shows, `#` and `?` where URL splitting does.
NAMES = ["plain", "with space", "ä/日本", "a#b", "a%20b", "q?x=1", "a+b&c", "y=a%2Fb", "x'\"[1]"]


def race(count: int, work: Callable[[int], bool]) -> list[bool]:
    """Runs ``work`` in many threads that start together."""
    together = threading.Barrier(count)

    def one(number: int) -> bool:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class TestObjects:
    def test_a_new_object_is_created_once(self, place: str) -> None:
        storage = Storage(place)
        for attempt in range(3):
            name = f"commits/{attempt}.json"
            contents = [f"{number} ".encode() * 1000 for number in range(20)]
            won = race(20, lambda i, name=name, contents=contents: storage.put_new(name, contents[i]))
            assert won.count(True) == 1
            assert storage.get(name) == contents[won.index(True)]
            assert not storage.put_new(name, b"late")
            assert storage.get(name) == contents[won.index(True)]
        assert [entry.path for entry in storage.list()] == [f"commits/{n}.json" for n in range(3)]

    def test_put_replaces(self, place: str) -> None:
        storage = Storage(place)
        storage.put("a", b"one")
        before = storage.head("a")
        storage.put("a", b"three")
        after = storage.head("a")
        assert storage.get("a") == b"three"
        assert before is not None
        assert after is not None
        assert (before.size_bytes, after.size_bytes) == (3, 5)
        assert before.version != after.version

    def test_what_is_not_there(self, place: str) -> None:
        storage = Storage(place)
        assert storage.get("none") is None
        assert storage.head("none") is None
        assert storage.list("none") == []
        storage.put("a", b"")
        storage.delete(["none", "a", "none"])
        assert storage.list() == []
        with pytest.raises(FileNotFoundError):
            storage.publish("none", "b")
        with pytest.raises(FileNotFoundError):
            storage.link_or_copy("none", "b")
        assert storage.list() == []

    def test_list_is_recursive_sorted_and_by_folder(self, place: str) -> None:
        storage = Storage(place)
        for path in ["b", "ab/2", "ab/10", "ab/c/d", "abc/x", "ab.x", "a/b"]:
            storage.put(path, b"x" * len(path))
        assert [e.path for e in storage.list()] == ["a/b", "ab.x", "ab/10", "ab/2", "ab/c/d", "abc/x", "b"]
        assert [e.path for e in storage.list("ab")] == ["ab/10", "ab/2", "ab/c/d"]
        for entry in storage.list():
            assert entry == storage.head(entry.path)
            assert entry.size_bytes == len(entry.path)
            assert entry.version

    def test_children_are_those_directly_below(self, place: str) -> None:
        storage = Storage(place)
        assert storage.children() == ([], [])
        for path in ["b", "ab/2", "ab/c/d", "abc/x", "ab.x"]:
            storage.put(path, b"x")
        folders, objects = storage.children()
        assert folders == ["ab", "abc"]
        assert [entry.path for entry in objects] == ["ab.x", "b"]
        folders, objects = storage.children("ab")
        assert folders == ["c"]
        assert [entry.path for entry in objects] == ["ab/2"]
        assert storage.children("none") == ([], [])

    def test_list_pages(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
        storage = Storage(f"{bucket}/many")
        names = [f"{number:04d}" for number in range(20)]
        for name in names:
            storage.put(name, b"")
        assert [entry.path for entry in storage.list()] == names

    def test_streams(self, place: str) -> None:
        storage = Storage(place)
        stream = storage.open_output("deep/er/x")
        stream.write(b"0123456789")
        stream.close()
        for mapped in (False, True):
            with storage.open_input("deep/er/x", mapped=mapped) as source:
                source.seek(4)
                assert source.read(3) == b"456"
                assert source.size() == 10
        with pytest.raises(OSError, match="deep/er/y"):
            storage.open_input("deep/er/y")

    def test_an_unclosed_s3_stream_is_invisible(self, bucket: str) -> None:
        storage = Storage(bucket)
        stream = storage.open_output("x")
        stream.write(b"0123456789")
        assert storage.list() == []
        stream.close()
        assert storage.get("x") == b"0123456789"

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("where", ["root", "path"])
    def test_odd_names(self, place: str, name: str, where: str) -> None:
        root, prefix = (f"{place}/{name}", "") if where == "root" else (place, f"{name}/")
        storage, path = Storage(root), f"{prefix}{name}.bin"
        assert storage.put_new(path, b"one")
        assert not storage.put_new(path, b"two")
        with storage.open_input(path) as source:
            assert source.read() == b"one"
        stream = storage.open_output(f"{path}-2")
        stream.write(b"two")
        stream.close()
        storage.link_or_copy(path, f"{path}-3")
        storage.publish(f"{path}-2", f"{path}-4")
        contents = {
            e.path: storage.get(e.path) for e in storage.list(prefix.rstrip("/")) if e.path != f"{path}-2"
        }
        assert contents == {path: b"one", f"{path}-3": b"one", f"{path}-4": b"two"}
        assert storage.head(path) == storage.list()[0]
        # Nothing was written beside the root, as a wrongly split URL would do.
        assert all(e.path.startswith(f"{name}/") for e in Storage(place).list())
        # A record that names the object leads to it.
        folder, _, last = storage.describe(path).rpartition("/")
        assert Storage(folder).get(last) == b"one"


class TestPublish:
    def test_it_replaces_as_a_whole(self, place: str) -> None:
        storage = Storage(place)
        storage.put("hidden/new", b"new")
        storage.put("final", b"old and longer")
        storage.publish("hidden/new", "final")
        assert storage.get("final") == b"new"

    def test_link_or_copy_keeps_the_source_and_repeats(self, place: str) -> None:
        storage = Storage(place)
        storage.put("a", b"1")
        for _ in range(3):
            storage.link_or_copy("a", "sub/b")
        assert storage.get("a") == storage.get("sub/b") == b"1"
        storage.put("c", b"2")
        storage.link_or_copy("c", "sub/b")
        assert storage.get("sub/b") == b"2"
        assert storage.get("a") == b"1"
        assert [entry.path for entry in storage.list()] == ["a", "c", "sub/b"]

    def test_a_link_shares_its_bytes_and_publishing_it_over_itself_is_safe(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path)
        storage.put("part", b"1")
        storage.link_or_copy("part", "run1/x")
        assert (tmp_path / "part").samefile(tmp_path / "run1/x")
        storage.publish("run1/x", "x")
        storage.link_or_copy("part", "run2/x")
        storage.publish("run2/x", "x")
        assert storage.get("x") == storage.get("part") == b"1"
        storage.delete(["run2/x", "part"])
        assert [entry.path for entry in storage.list()] == ["x"]

    def test_replacing_a_link_leaves_the_other_name(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path)
        storage.put("part", b"1")
        storage.link_or_copy("part", "x")
        storage.put("y", b"2")
        storage.publish("y", "x")
        assert (storage.get("part"), storage.get("x")) == (b"1", b"2")


class TestUrls:
    def test_forms_of_a_local_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        here = Storage(tmp_path / "a b")
        forms = ["a b", "./a b/", "x/../a b", "~/a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b"]
        forms += [f"file://localhost{tmp_path}/a b", f"FILE://{tmp_path}/a b"]
        assert {Storage(form) for form in forms} == {here}
        assert here.url == f"{tmp_path}/a b"
        assert Storage("a:b").root == str(tmp_path / "a:b")
        assert Storage("//[x").root.endswith("[x")

    def test_forms_of_an_s3_url(self, s3_environment: dict[str, str]) -> None:
        assert Storage("s3://b/p/q/") == Storage("s3://b/p/q")
        assert Storage("s3://b/") == Storage("s3://b")
        assert Storage("s3://b").describe("x") == "s3://b/x"
        assert Storage("s3://b/p").describe("x") == "s3://b/p/x"
        assert Storage("s3://b/p").describe() == "s3://b/p"
        assert Storage("s3://b") != Storage("s3://c")
        assert Storage("s3://b").exists()

    @pytest.mark.parametrize(
        ("url", "fact"),
        [
            ("s3://", "s3:// names no bucket"),
            ("s3:///x", "names no bucket"),
            ("gs://b/x", "gs:// is not supported"),
            ("https://host/x", "https:// is not supported"),
            ("file://host/x", "names the host 'host'"),
        ],
    )
    def test_refused(self, url: str, fact: str) -> None:
        with pytest.raises(UsageError, match=re.escape(fact)) as raised:
            Storage(url)
        assert raised.value.hint

    @pytest.mark.parametrize("name", ["p", "a%20b #?", "ä"])
    def test_pickling(self, place: str, name: str) -> None:
        storage = Storage(f"{place}/{name}")
        storage.put("x", b"1")
        copy = pickle.loads(pickle.dumps(storage))
        assert copy == storage
        assert hash(copy) == hash(storage)
        assert copy.get("x") == b"1"
        assert name in repr(copy)

    def test_reading_creates_no_folder(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path / "none")
        assert not storage.exists()
        assert storage.list() == []
        assert storage.get("x") is None
        assert storage.head("x") is None
        assert not (tmp_path / "none").exists()


class TestForeignErrors:
    def test_its_own_errors_pass(self) -> None:
        with pytest.raises(DatasetError) as raised, foreign_errors(OutputError, "cannot"):
            raise DatasetError("fact", "hint")
        assert raised.value.args == ("fact", "hint")

    def test_defects_pass(self) -> None:
        with pytest.raises(ZeroDivisionError), foreign_errors(OutputError, "cannot"):
            raise ZeroDivisionError

    def test_a_known_cause_gives_a_better_hint_than_the_callers(self) -> None:
        with (
            pytest.raises(DatasetError) as raised,
            foreign_errors(DatasetError, "cannot read x", "is it whole?"),
        ):
            raise PermissionError(13, "Permission denied")
        assert raised.value.hint == "check the permissions of that path"
        with (
            pytest.raises(DatasetError) as raised,
            foreign_errors(DatasetError, "cannot read x", "is it whole?"),
        ):
            raise pa.ArrowInvalid("no footer\nsecond line")
        assert raised.value.args == ("cannot read x: no footer", "is it whole?")

    def test_one_line(self) -> None:
        assert one_line(OSError("  a b \n c")) == "a b"
        assert one_line(OSError()) == "OSError"
        assert one_line(OSError("\n")) == "OSError"
        assert len(one_line(OSError("x" * 1000))) == 300

    OPERATIONS: tuple[tuple[str, Callable[[Storage], object]], ...] = (
        ("put_new", lambda storage: storage.put_new("a/b", b"x")),
        ("put", lambda storage: storage.put("a/b", b"x")),
        ("list", lambda storage: storage.list()),
        ("open_output", lambda storage: storage.open_output("a/b").close()),
        ("link_or_copy", lambda storage: storage.link_or_copy("x", "a/b")),
    )

    @pytest.mark.parametrize("operation", [operation for _, operation in OPERATIONS], ids=dict(OPERATIONS))
    def test_missing_bucket(
        self, s3_environment: dict[str, str], operation: Callable[[Storage], object]
    ) -> None:
        with (
            pytest.raises(OutputError, match="cannot use it") as raised,
            foreign_errors(OutputError, "cannot use it"),
        ):
            operation(Storage("s3://not-there/prefix"))
        assert "\n" not in raised.value.fact
        if "copy" not in str(operation.__code__.co_names):
            assert raised.value.hint == "create the bucket first"

    @pytest.mark.parametrize("operation", [operation for _, operation in OPERATIONS], ids=dict(OPERATIONS))
    def test_wrong_credentials(
        self, bucket: str, operation: Callable[[Storage], object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from moto.core import set_initial_no_auth_action_count

        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
        checked = set_initial_no_auth_action_count(0)(lambda: operation(Storage(f"{bucket}/prefix")))
        with pytest.raises(OutputError) as raised, foreign_errors(OutputError, "cannot use it"):
            checked()
        assert raised.value.hint == "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"

    @pytest.mark.parametrize("operation", [o for name, o in OPERATIONS if name != "list"])
    def test_a_file_where_a_folder_must_be(
        self, tmp_path: Path, operation: Callable[[Storage], object]
    ) -> None:
        (tmp_path / "file").write_bytes(b"")
        storage = Storage(tmp_path / "file")
        assert not storage.exists()
        with pytest.raises(OutputError, match="cannot use it"), foreign_errors(OutputError, "cannot use it"):
            operation(storage)

    @pytest.fixture
    def tiny_disk(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "tiny"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            pytest.skip("this process may not mount a tmpfs")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    @pytest.mark.parametrize("way", ["put", "put_new", "open_output"])
    def test_no_space_left(self, tiny_disk: Path, way: str) -> None:
        storage, data = Storage(tiny_disk), os.urandom(1 << 20)

        def write() -> None:
            if way != "open_output":
                getattr(storage, way)("x", data)
                return
            with storage.open_output("x") as stream:
                stream.write(data)

        with pytest.raises(OutputError) as raised, foreign_errors(OutputError, "cannot write x"):
            write()
        assert raised.value.hint == "free some space there"
        if way != "open_output":
            assert storage.list() == []


def test_entries_compare_by_value() -> None:
    assert Entry(path="a", size_bytes=1, version="x") == Entry(path="a", size_bytes=1, version="x")
    assert Entry(path="a", size_bytes=1, version="x") != Entry(path="a", size_bytes=1, version="y")
