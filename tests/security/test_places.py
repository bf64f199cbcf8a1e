"""Folders with engines or results: new ones are private, those that strangers can write to are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets.storage import Storage
from trtfleet.errors import CacheError
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache import trust
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.staging import stage
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.calibration.table_store import TableStore

IDENTITY = Identity(
    model="a" * 64,
    options=BuildOptions().as_identity(),
    flavour="tensorrt",
    version="10.16",
    compute_capability="9.0",
    gpu="NVIDIA H100",
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Any:
    """A process that gives everything to everybody, unless it is told otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_new_caches_and_outputs_are_their_users_alone(tmp_path: Path) -> None:
    EngineCache(tmp_path / "cache").publish(IDENTITY, {"a": b"b"})
    Storage(tmp_path / "out").put("_trtfleet/g0001/job.json", b"{}")
    with Storage(tmp_path / "other").open_output("part.parquet") as sink:
        sink.write(b"x")
    for name in ("cache", "out", "other"):
        assert mode(tmp_path / name) == 0o700


def test_an_existing_folder_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o750)
    Storage(tmp_path / "out").put("a", b"")
    assert mode(tmp_path / "out") == 0o750


@pytest.mark.parametrize("folder", ["", "entries", "blobs"])
@pytest.mark.parametrize("permissions", [0o777, 0o1777, 0o702])
def test_a_cache_that_everybody_can_write_to_is_refused(
    tmp_path: Path, folder: str, permissions: int
) -> None:
    root = tmp_path / "cache"
    EngineCache(root).publish(IDENTITY, {"a": b"b"})
    entry = EngineCache(root).find(IDENTITY)
    assert entry is not None
    (root / folder).chmod(permissions)
    uses: list[Callable[[], object]] = [
        lambda: EngineCache(root).find(IDENTITY),
        lambda: EngineCache(root).entries(),
        lambda: EngineCache(root).publish(IDENTITY, {"a": b"b"}),
        lambda: EngineCache(root).read(entry, "a"),
        lambda: TableStore(root).find("a" * 64, {}),
    ]
    for use in uses:
        with pytest.raises(CacheError, match="can be written by everybody") as raised:
            use()
        assert f"(mode {permissions:o})" in raised.value.fact
        assert f"chmod o-w {root / folder}" in raised.value.hint
    (root / folder).chmod(0o770)
    assert EngineCache(root).find(IDENTITY) == entry


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_folder_that_a_stranger_put_in_our_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "tmp"
    root = parent / "engines"
    root.mkdir(parents=True)
    EngineCache(root).publish(IDENTITY, {"a": b"b"})
    os.chown(root, 65534, 65534)
    # Where only its owner can put folders, a folder of somebody else's is there on purpose.
    assert EngineCache(root).find(IDENTITY) is not None
    parent.chmod(0o1777)
    with pytest.raises(CacheError, match="belongs to user 65534"):
        EngineCache(root).find(IDENTITY)
    monkeypatch.setattr(trust.os, "geteuid", lambda: 65534)
    assert EngineCache(root).find(IDENTITY) is not None


def test_a_changed_plan_is_refused_before_anybody_gets_it(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    entry = cache.publish(IDENTITY, {"a.plan": b"native code"})
    staged = stage(cache, entry)
    assert staged.read("a.plan") == b"native code"
    Path(staged.path("a.plan")).write_bytes(b"other code!")
    for read in (lambda: staged.read("a.plan"), lambda: cache.read(entry, "a.plan")):
        with pytest.raises(CacheError, match="is damaged"):
            read()


def test_a_plan_that_no_manifest_names_is_never_loaded(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.objects.put("blobs/" + "d" * 64, b"planted")
    assert cache.find(IDENTITY) is None
    assert cache.entries() == ()
