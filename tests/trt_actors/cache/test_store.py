"""The cache: found by identity alone, published once, and nothing unverified is ever returned."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import CacheError
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.location import default_cache_url
from trtfleet.trt_actors.cache.objects import BLOBS, ENTRIES, PENDING, blob_path, manifest_path
from trtfleet.trt_actors.cache.store import EngineCache

FILES = {"segment-0.plan": b"plan " * 1000, "native-1.onnx": b"onnx", "layout.json": b"{}"}
Damage = Callable[[str, Callable[[bytes], bytes]], None]

FIELDS: dict[str, Any] = {
    "model": "0" * 64,
    "network": "0" * 64,
    "calibration": None,
    "flavour": "tensorrt",
    "version": "1.7.1.32",
    "compute_capability": "9.0",
    "gpu": "NVIDIA L40S",
    "plugins": (),
    "format": 2,
}
OPTIONS: dict[str, Any] = {
    "precision": "fp32",
    "max_batch_size": 65,
    "workspace_size": 0,
    "min_subgraph_size": 4,
    "profiles": ["x=1,2,3"],
    "optimization_level": 0,
    "version_compatible": True,
    "hardware_compatible": "ampere-plus",
    "exclude_ops": ["Conv"],
}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_bundle_comes_back_as_it_was(cache: EngineCache, identity: Identity) -> None:
    assert cache.find(identity) is None
    published = cache.publish(identity, FILES, build_s=2.5, extra={"coverage": (1, 2)})
    found = pickle.loads(pickle.dumps(cache)).find(identity)
    assert found == published
    assert found.extra == {"coverage": [1, 2]}
    assert found.build_s == 2.5
    assert {name: cache.read(found, name) for name in found.files} == FILES
    assert {name: b"".join(cache.chunks(found, name)) for name in found.files} == FILES
    assert cache.verify(found) == []
    assert cache.entries() == (found,)
    assert cache.objects.paths(PENDING) == []


def test_these_are_all_fields_and_options() -> None:
    assert {*FIELDS, "options"} == {f.name for f in fields(Identity)}
    assert set(OPTIONS) == set(BuildOptions().as_identity())


@pytest.mark.parametrize("name", [*FIELDS, *(f"options.{name}" for name in OPTIONS)])
def test_any_changed_field_misses_and_is_named(cache: EngineCache, identity: Identity, name: str) -> None:
    option = name.removeprefix("options.")
    if option == name:
        wanted = replace(identity, **{name: FIELDS[name]})
    else:
        wanted = replace(identity, options={**identity.options, option: OPTIONS[option]})
    cache.publish(identity, FILES)
    assert cache.find(wanted) is None
    assert [field for field, _, _ in wanted.differences(identity)] == [name]
    assert cache.explain_miss(wanted).startswith(f"{option} is ")
    assert ";" not in cache.explain_miss(wanted)


def test_a_miss_names_the_nearest_entry_of_the_model(cache: EngineCache, identity: Identity) -> None:
    assert cache.explain_miss(identity) == f"{cache.url} holds no engine"
    other_model = replace(identity, model="e" * 64)
    cache.publish(other_model, FILES)
    assert cache.explain_miss(identity) == "model is eeeeeeeeeeee there, aaaaaaaaaaaa is wanted"
    far = replace(identity, gpu="H200", version="2", options={**identity.options, "precision": "int8"})
    cache.publish(far, FILES)
    near = replace(identity, options={**identity.options, "precision": "fp32"})
    cache.publish(near, FILES)
    assert cache.explain_miss(identity) == "precision is fp32 there, fp16 is wanted"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (flip, "has SHA-256"),
        (lambda data: data[:-1], "bytes, the manifest says"),
        (lambda data: data + b"x", "bytes"),
    ],
    ids=["flipped", "truncated", "longer"],
)
def test_a_damaged_file_is_refused(
    cache: EngineCache, identity: Identity, damage: Damage, name: str, change: Any, says: str
) -> None:
    entry = cache.publish(identity, FILES)
    damage(blob_path(entry.file(name).sha256), change)
    with pytest.raises(CacheError, match=f"{name} of engine .* is damaged: .*{says}") as raised:
        cache.read(entry, name)
    assert f"prune {entry.key[:12]}`" in raised.value.hint
    with pytest.raises(CacheError, match="is damaged"):
        list(cache.chunks(entry, name))
    assert len(cache.verify(entry)) == 1
    others = set(FILES) - {name}
    assert all(cache.read(entry, other) == FILES[other] for other in others)


def test_a_missing_file_is_refused(cache: EngineCache, identity: Identity) -> None:
    entry = cache.publish(identity, FILES)
    cache.objects.delete([blob_path(entry.file("layout.json").sha256)])
    with pytest.raises(CacheError, match=r"layout.json of engine \w+ is missing"):
        cache.read(entry, "layout.json")
    assert len(cache.verify(entry)) == 1


def test_a_manifest_under_another_key_is_refused_naming_the_field(
    cache: EngineCache, identity: Identity
) -> None:
    other = replace(identity, options={**identity.options, "precision": "fp32"})
    entry = cache.publish(other, FILES)
    cache.objects.put(manifest_path(identity.key), entry.encode())
    with pytest.raises(CacheError, match="another engine: precision is fp32 there, fp16 is wanted"):
        cache.find(identity)
    contents = cache.contents()
    assert contents.entries == (entry,)
    assert [one.key for one in contents.unreadable] == [identity.key]


def test_a_damaged_manifest_is_refused_and_does_not_hide_the_others(
    cache: EngineCache, identity: Identity, damage: Damage
) -> None:
    entry = cache.publish(identity, FILES)
    other = cache.publish(replace(identity, gpu="H200"), FILES)
    damage(manifest_path(entry.key), lambda data: data.replace(b"NVIDIA", b"nvidia"))
    with pytest.raises(CacheError, match="is damaged"):
        cache.find(identity)
    assert cache.entries() == (other,)
    with pytest.raises(CacheError, match="is damaged"):
        cache.publish(identity, FILES)


def test_of_many_that_publish_at_once_one_stands(cache: EngineCache, identity: Identity) -> None:
    together = threading.Barrier(8)

    def publish(number: int) -> Entry:
        together.wait()
        return cache.publish(identity, {"a.plan": b"%d" % number, "layout.json": b"{}"})

    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(publish, range(8)))
    assert len(set(map(Entry.encode, entries))) == 1
    assert cache.entries() == (entries[0],)
    assert cache.verify(entries[0]) == []


def test_a_later_publication_changes_nothing(cache: EngineCache, identity: Identity) -> None:
    first = cache.publish(identity, FILES)
    second = cache.publish(identity, {"other.plan": b"other"})
    assert second == first == cache.find(identity)


def test_one_content_is_stored_once(cache: EngineCache, identity: Identity) -> None:
    cache.publish(identity, FILES)
    cache.publish(replace(identity, gpu="H200"), {**FILES, "copy": FILES["layout.json"]})
    assert len(cache.objects.paths(BLOBS)) == len(FILES)
    assert len(cache.objects.paths(ENTRIES)) == 2


def test_a_publication_replaces_damaged_contents(
    cache: EngineCache, identity: Identity, damage: Damage
) -> None:
    old = cache.publish(identity, FILES)
    damage(blob_path(old.file("layout.json").sha256), flip)
    new = cache.publish(replace(identity, gpu="H200"), FILES)
    assert cache.verify(new) == []
    assert cache.verify(old) == []


def test_an_empty_file_is_a_file(cache: EngineCache, identity: Identity) -> None:
    entry = cache.publish(identity, {"empty": b""})
    assert cache.read(entry, "empty") == b""
    assert cache.verify(entry) == []


def test_a_file_of_many_parts(cache: EngineCache, identity: Identity) -> None:
    data = os.urandom(1 << 20) * 17
    entry = cache.publish(identity, {"large": data})
    assert cache.read(entry, "large") == data
    assert [len(chunk) for chunk in cache.chunks(entry, "large")] == [16 << 20, 1 << 20]


def test_reading_creates_nothing(tmp_path: Path, identity: Identity) -> None:
    cache = EngineCache(tmp_path / "none")
    assert cache.find(identity) is None
    assert cache.entries() == ()
    assert cache.explain_miss(identity).endswith("holds no engine")
    assert not (tmp_path / "none").exists()


def test_a_new_local_cache_is_its_users_alone(tmp_path: Path, identity: Identity) -> None:
    EngineCache(tmp_path / "new").publish(identity, FILES)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_file_in_the_place_of_the_cache(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "file").write_bytes(b"")
    for url in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match=f"engine cache {url} cannot be written") as raised:
            EngineCache(url).publish(identity, FILES)
        assert raised.value.hint
        assert "\n" not in str(raised.value)


READ_ONLY = """
import json, os, sys
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.store import EngineCache

if os.geteuid() == 0:
    os.setuid(65534)
cache, identity = EngineCache(sys.argv[1]), Identity.from_json(json.loads(sys.argv[2]))
print(obtain(cache, identity, lambda: None).read("layout.json"))
try:
    obtain(cache, Identity.from_json({**identity.as_json(), "gpu": "H200"}), lambda: print("built"))
except CacheError as error:
    print(error.fact, error.hint, sep="\\n")
"""


def test_a_folder_without_permission_is_for_reading(identity: Identity) -> None:
    # Root may write everywhere; another user, whom it becomes, must be able to reach the folder.
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        EngineCache(place).publish(identity, FILES)
        folders = [Path(place), *(path for path in Path(place).iterdir())]
        for folder in folders:
            folder.chmod(0o555)
        command = [sys.executable, "-c", READ_ONLY, place, json.dumps(identity.as_json())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
        for folder in folders:
            folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    read, fact, hint = done.stdout.splitlines()
    assert read == "b'{}'"
    assert fact.startswith(f"the engine cache {place} cannot be written: ")
    assert hint == "check the permissions of that path"


def test_a_missing_bucket(s3_environment: dict[str, str], identity: Identity) -> None:
    with pytest.raises(CacheError, match="cannot be written") as raised:
        EngineCache("s3://not-there/engines").publish(identity, FILES)
    assert raised.value.hint == "create the bucket first"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_entry(tiny_disk: Path, identity: Identity) -> None:
    cache = EngineCache(tiny_disk)
    standing = cache.publish(identity, {"a": b"a"})
    with pytest.raises(CacheError, match="cannot be written") as raised:
        cache.publish(replace(identity, gpu="H200"), {"b": os.urandom(1 << 20)})
    assert raised.value.hint == "free some space there"
    assert cache.entries() == (standing,)
    assert cache.verify(standing) == []
    assert cache.objects.paths(PENDING) == []


def test_caches_compare_by_place(tmp_path: Path) -> None:
    assert EngineCache(tmp_path) == EngineCache(f"{tmp_path}/")
    assert EngineCache(tmp_path) != EngineCache(tmp_path / "other")
    assert len({EngineCache(tmp_path), EngineCache(tmp_path)}) == 1


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TRTFLEET_CACHE", raising=False)
    assert default_cache_url() == f"{tmp_path}/.cache/trtfleet/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_cache_url() == f"{tmp_path}/.cache/trtfleet/engines"
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/x")
    assert default_cache_url() == f"{tmp_path}/x/trtfleet/engines"
    monkeypatch.setenv("TRTFLEET_CACHE", "s3://bucket/engines")
    assert default_cache_url() == "s3://bucket/engines"
    monkeypatch.setenv("TRTFLEET_CACHE", f"{tmp_path}/mine")
    assert EngineCache().url == f"{tmp_path}/mine"
