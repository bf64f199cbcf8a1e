"""Copies on a node: fetched once, whole or not at all, verified whenever they are opened."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.location import default_staging_folder
from trtfleet.trt_actors.cache.objects import blob_path
from trtfleet.trt_actors.cache.staging import Staged, stage
from trtfleet.trt_actors.cache.store import EngineCache

FILES = {"a.plan": b"plan " * 100_000, "layout.json": b"{}"}


class Counting(EngineCache):
    """A cache that knows what was fetched from it."""

    fetched: list[str]

    def chunks(self, entry: Entry, name: str) -> Iterator[bytes]:
        self.fetched.append(name)
        return super().chunks(entry, name)


@pytest.fixture
def far(bucket: str) -> Counting:
    """A cache in a bucket."""
    cache = Counting(f"{bucket}/engines")
    cache.fetched = []
    return cache


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_many_at_once_fetch_once(far: Counting, identity: Identity, tmp_path: Path) -> None:
    entry = far.publish(identity, FILES)
    together = threading.Barrier(6)

    def get(_: int) -> dict[str, bytes]:
        together.wait()
        staged = stage(far, entry, tmp_path / "staged")
        return {name: staged.read(name) for name in FILES}

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(get, range(6))) == [FILES] * 6
    assert sorted(far.fetched) == sorted(FILES)
    assert not list((tmp_path / "staged").glob("fetching-*"))
    assert stat.S_IMODE((tmp_path / "staged").stat().st_mode) == 0o700


def test_a_local_cache_is_used_where_it_is(tmp_path: Path, identity: Identity) -> None:
    cache = EngineCache(tmp_path / "cache")
    entry = cache.publish(identity, FILES)
    staged = stage(cache, entry, tmp_path / "staged")
    assert {name: staged.read(name) for name in FILES} == FILES
    assert staged.path("a.plan").startswith(cache.url)
    assert not (tmp_path / "staged").exists()


@pytest.mark.parametrize("where", ["local", "bucket"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (flip, "has SHA-256"),
        (lambda path: os.truncate(path, 5), "has 5 bytes"),
        (Path.unlink, "is missing"),
    ],
    ids=["flipped", "truncated", "deleted"],
)
def test_a_copy_is_verified_at_every_opening(
    where: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    identity: Identity,
    change: Callable[[Path], None],
    says: str,
) -> None:
    cache = EngineCache(tmp_path / "cache") if where == "local" else request.getfixturevalue("far")
    entry = cache.publish(identity, FILES)
    staged = stage(cache, entry, tmp_path / "staged")
    assert staged.read("a.plan") == FILES["a.plan"]
    change(Path(staged.path("a.plan")))
    with pytest.raises(CacheError, match=f"a.plan of engine .*{says}"):
        staged.read("a.plan")
    assert staged.read("layout.json") == FILES["layout.json"]


def test_a_damaged_copy_is_fetched_again(far: Counting, identity: Identity, tmp_path: Path) -> None:
    entry = far.publish(identity, FILES)
    staged = stage(far, entry, tmp_path)
    flip(Path(staged.path("a.plan")))
    again = stage(far, entry, tmp_path)
    assert again.read("a.plan") == FILES["a.plan"]
    assert sorted(far.fetched) == ["a.plan", "a.plan", "layout.json"]


def test_what_is_damaged_in_the_cache_is_never_staged(
    far: Counting, identity: Identity, tmp_path: Path
) -> None:
    entry = far.publish(identity, FILES)
    sha256 = entry.file("a.plan").sha256
    far.objects.put(blob_path(sha256), FILES["a.plan"][:-1] + b"x")
    with pytest.raises(CacheError, match="is damaged"):
        stage(far, entry, tmp_path)
    assert not (tmp_path / sha256).exists()
    assert not list(tmp_path.glob("fetching-*"))


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_what_the_cache_lacks_is_an_error(
    where: str, request: pytest.FixtureRequest, identity: Identity, tmp_path: Path
) -> None:
    cache = EngineCache(tmp_path / "cache") if where == "local" else request.getfixturevalue("far")
    entry = cache.publish(identity, FILES)
    cache.objects.delete([blob_path(entry.file("a.plan").sha256)])
    with pytest.raises(CacheError, match=r"a.plan of engine \w+ is missing"):
        stage(cache, entry, tmp_path / "staged")


def test_a_folder_that_cannot_be_written(far: Counting, identity: Identity, tmp_path: Path) -> None:
    entry = far.publish(identity, FILES)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="engines cannot be staged in") as raised:
        stage(far, entry, tmp_path / "file" / "below")
    assert raised.value.hint


def test_a_staged_engine_knows_its_files(tmp_path: Path, identity: Identity) -> None:
    cache = EngineCache(tmp_path)
    staged: Staged = stage(cache, cache.publish(identity, FILES))
    with pytest.raises(CacheError, match="has no file 'b'"):
        staged.read("b")


def test_the_default_folder(
    far: Counting, identity: Identity, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRTFLEET_STAGING", raising=False)
    assert default_staging_folder() == f"{tmp_path}/trtfleet/staged"
    monkeypatch.setenv("TRTFLEET_STAGING", f"{tmp_path}/here")
    staged = stage(far, far.publish(identity, FILES))
    assert staged.path("a.plan").startswith(f"{tmp_path}/here/")


def test_copies_that_nobody_uses_go_after_a_month(far: Counting, identity: Identity, tmp_path: Path) -> None:
    used = stage(far, far.publish(identity, {"a": b"used"}), tmp_path)
    unused = stage(far, far.publish(replace(identity, gpu="H200"), {"a": b"unused"}), tmp_path)
    of_others = tmp_path / "thesis.tex"
    for path in (of_others, tmp_path / "fetching-abc", tmp_path / "fetching-now"):
        path.write_bytes(b"")
    month_ago_s = time.time() - 31 * 86400
    for path in tmp_path.iterdir():
        if path.name != "fetching-now":
            os.utime(path, (month_ago_s, month_ago_s))
    assert stage(far, used.entry, tmp_path).read("a") == b"used"
    assert Path(unused.path("a")).exists()
    stage(far, far.publish(replace(identity, gpu="H100"), {"a": b"new"}), tmp_path)
    assert not Path(unused.path("a")).exists()
    assert not (tmp_path / "fetching-abc").exists()
    assert (tmp_path / "fetching-now").exists()
    assert of_others.exists()
    assert used.read("a") == b"used"
