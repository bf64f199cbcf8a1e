"""One build for all who want an engine, whatever happens to the builder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.lease import Claim
from trtfleet.trt_actors.cache.objects import BLOBS, blob_path
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.store import EngineCache


def never() -> Built:
    raise AssertionError("nothing was to be built")


def test_built_once_then_found(cache: EngineCache, identity: Identity, tmp_path: Path) -> None:
    said: list[str] = []
    built = Built(files={"a.plan": b"plan"}, extra={"coverage": 1.0})
    first = obtain(cache, identity, lambda: built, say=said.append, staging=tmp_path / "staged")
    assert (first.how, first.read("a.plan")) == ("built", b"plan")
    assert first.entry == cache.find(identity)
    assert first.entry.extra == {"coverage": 1.0}
    again = obtain(cache, identity, never, say=said.append, staging=tmp_path / "staged")
    assert (again.how, again.read("a.plan")) == ("found", b"plan")
    assert said[0] == f"no such engine is cached: {cache.url} holds no engine"
    assert " built in " in said[1]
    assert said[2] == f"engine {identity.key[:12]} found in {cache.url}"


def test_another_precision_is_another_engine_and_the_reason_is_said(
    cache: EngineCache, identity: Identity, tmp_path: Path
) -> None:
    said: list[str] = []
    for precision in ("fp32", "fp16"):
        wanted = replace(identity, options={**identity.options, "precision": precision})
        made = Built(files={"a.plan": precision.encode()})
        staged = obtain(cache, wanted, lambda made=made: made, say=said.append, staging=tmp_path)
        assert (staged.how, staged.read("a.plan")) == ("built", precision.encode())
    assert "no such engine is cached: precision is fp32 there, fp16 is wanted" in said


def test_processes_that_start_together_build_once(builders: Any, place: str, identity: Identity) -> None:
    names = ["one", "two", "six"]
    holds = [builders.hold(name) for name in names]
    for name in names:
        builders.start(name, place)
    builders.go()
    builders.wait_for(lambda: sum(line.endswith(": waiting") for line in builders.told()) == 2)
    for hold in holds:
        hold.unlink()
    got = {name: builders.finish(name) for name in names}
    (builder,) = builders.builds()
    assert got.pop(builder) == f"built {builder}"
    assert set(got.values()) == {f"waited {builder}"}
    cache = EngineCache(place)
    assert [entry.identity for entry in cache.entries()] == [identity]
    assert len(cache.objects.paths(BLOBS)) == 2


def test_a_killed_builder_leaves_nothing_and_another_builds(
    builders: Any, place: str, identity: Identity
) -> None:
    builders.hold("one")
    builders.start("one", place, ttl_s=1)
    builders.go()
    builders.wait_for(builders.builds)
    builders.start("two", place, ttl_s=1)
    builders.wait_for(lambda: any(line.endswith(": waiting") for line in builders.told()))
    # The builder is alive, so it keeps the lease however long its build takes.
    assert builders.builds() == ["one"]
    builders.running["one"].kill()
    builders.running["one"].wait()
    assert EngineCache(place).find(identity) is None
    assert EngineCache(place).entries() == ()
    assert builders.finish("two") == "built two"
    assert builders.builds() == ["one", "two"]
    assert len(EngineCache(place).entries()) == 1


def test_one_killed_between_its_contents_and_its_manifest_leaves_nothing_to_load(
    place: str, identity: Identity, tmp_path: Path
) -> None:
    program = """
import json, os, signal, sys
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.objects import Objects
from trtfleet.trt_actors.cache.store import EngineCache
put_new = Objects.put_new

def die_first(self, path, data):
    if path.startswith("entries/"):
        os.kill(os.getpid(), signal.SIGKILL)
    return put_new(self, path, data)

Objects.put_new = die_first
identity = Identity.from_json(json.loads(sys.argv[2]))
obtain(EngineCache(sys.argv[1]), identity, lambda: Built(files={"a": b"old"}))
"""
    command = [sys.executable, "-c", program, place, json.dumps(identity.as_json())]
    died = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    cache = EngineCache(place)
    assert len(cache.objects.paths(BLOBS)) == 1
    assert cache.find(identity) is None
    assert cache.entries() == ()
    staged = obtain(cache, identity, lambda: Built(files={"a": b"new"}), ttl_s=0.5, staging=tmp_path)
    assert (staged.how, staged.read("a")) == ("built", b"new")


def test_a_paused_builder_that_wakes_takes_what_stands(builders: Any, place: str, identity: Identity) -> None:
    hold = builders.hold("one")
    first = builders.start("one", place, ttl_s=1)
    builders.go()
    builders.wait_for(builders.builds)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        builders.start("two", place, ttl_s=1)
        assert builders.finish("two") == "built two"
    finally:
        os.kill(first.pid, signal.SIGCONT)
    hold.unlink()
    assert builders.finish("one") == "built two"
    assert len(EngineCache(place).entries()) == 1


def test_after_a_build_that_failed_the_next_one_tries_at_once(builders: Any, place: str) -> None:
    hold = builders.hold("one")
    (builders.folder / "fail-one").touch()
    failing = builders.start("one", place)
    builders.go()
    builders.wait_for(builders.builds)
    builders.start("two", place)
    builders.wait_for(lambda: any(line.endswith(": waiting") for line in builders.told()))
    hold.unlink()
    assert "ValueError: this build fails" in failing.communicate(timeout=60)[1]
    # The lease lasts a minute; a released one is not waited for.
    assert builders.finish("two") == "built two"


def test_an_entry_published_before_the_lease_was_taken_is_not_built_again(
    cache: EngineCache, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Claim.take

    def late(claim: Claim) -> Any:
        cache.publish(identity, {"a.plan": b"theirs"})
        return take(claim)

    monkeypatch.setattr(Claim, "take", late)
    staged = obtain(cache, identity, never, staging=tmp_path)
    assert (staged.how, staged.read("a.plan")) == ("waited", b"theirs")


def test_an_entry_removed_after_it_was_found_is_built_anew(
    cache: EngineCache, identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cache.publish(identity, {"a.plan": b"old"})
    find = EngineCache.find

    def find_then_prune(here: EngineCache, wanted: Identity) -> Entry | None:
        monkeypatch.undo()
        found = find(here, wanted)
        here.objects.delete([f"entries/{old.key}.json", blob_path(old.file("a.plan").sha256)])
        return found

    monkeypatch.setattr(EngineCache, "find", find_then_prune)
    staged = obtain(cache, identity, lambda: Built(files={"a.plan": b"new"}), staging=tmp_path)
    assert (staged.how, staged.read("a.plan")) == ("built", b"new")


def test_a_damaged_entry_is_an_error_and_not_built_over(
    cache: EngineCache, identity: Identity, tmp_path: Path
) -> None:
    entry = cache.publish(identity, {"a.plan": b"plan"})
    cache.objects.put(f"entries/{entry.key}.json", b"{")
    with pytest.raises(CacheError, match="is damaged"):
        obtain(cache, identity, never, staging=tmp_path)
    cache.objects.put(f"entries/{entry.key}.json", entry.encode())
    cache.objects.delete([blob_path(entry.file("a.plan").sha256)])
    with pytest.raises(CacheError, match="is missing"):
        obtain(cache, identity, never, staging=tmp_path)


def test_a_cache_that_cannot_be_written_is_an_error_before_the_build(
    identity: Identity, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot be written"):
        obtain(EngineCache(tmp_path / "file"), identity, never)


def test_what_the_build_raises_comes_out_and_frees_the_lease(
    cache: EngineCache, identity: Identity, tmp_path: Path
) -> None:
    def interrupted() -> Built:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(cache, identity, interrupted, staging=tmp_path)
    assert obtain(cache, identity, lambda: Built(files={"a": b"a"}), staging=tmp_path).how == "built"
