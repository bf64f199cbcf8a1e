"""A cache with a key: what is not signed with it is refused, and the key itself is seen nowhere."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import CacheError, CalibrationError
from trtfleet.tests.fuzz.seeds import small_table
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.batch_sizes import BatchSize, find_batch_size, keep_batch_size
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.objects import BATCHES, manifest_path
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.signing import KEY, KEY_FILE, CacheKey, cache_key, require_key
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.task import TensorRTSettings

SECRET = "a-secret-that-nobody-may-ever-see"
ANOTHER = "another-secret-of-some-other-team"
FILES = {"segment-000.plan": b"plan " * 100, "layout.json": b"{}"}


@pytest.fixture
def identity() -> Identity:
    """Of some engine."""
    return Identity(
        model="a" * 64, flavour="tensorrt", version="10.16", compute_capability="9.0", gpu="NVIDIA H100"
    )


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Sets this process's key, or takes it away."""
    monkeypatch.delenv(KEY_FILE, raising=False)

    def change(secret: str | None) -> None:
        if secret is None:
            monkeypatch.delenv(KEY, raising=False)
        else:
            monkeypatch.setenv(KEY, secret)

    change(None)
    return change


Use = Callable[[str | None], None]


def change(url: str, path: str, how: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites a JSON object of a cache as somebody could who can write there."""
    objects = EngineCache(url).objects
    values = json.loads(objects.get(path) or b"")
    how(values)
    objects.put(path, json.dumps(values).encode())


def test_a_signed_engine_is_found_with_its_key(place: str, identity: Identity, use: Use) -> None:
    use(SECRET)
    published = EngineCache(place).publish(identity, FILES, extra={"coverage": 0.5})
    found = pickle.loads(pickle.dumps(EngineCache(place))).find(identity)
    assert found == published
    assert found is not None
    assert EngineCache(place).read(found, "layout.json") == b"{}"
    assert EngineCache(place).verify(found) == []


def test_an_unsigned_engine_is_refused_where_there_is_a_key(place: str, identity: Identity, use: Use) -> None:
    EngineCache(place).publish(identity, FILES)
    use(SECRET)
    cache = EngineCache(place)
    with pytest.raises(CacheError, match="is not signed: only engines signed with key") as raised:
        cache.find(identity)
    assert "cache prune --damaged" in raised.value.hint
    contents = cache.contents()
    assert contents.entries == ()
    assert [one.key for one in contents.unreadable] == [identity.key]


def test_publishing_over_an_unsigned_engine_is_refused(place: str, identity: Identity, use: Use) -> None:
    EngineCache(place).publish(identity, {"segment-000.plan": b"planted"})
    use(SECRET)
    with pytest.raises(CacheError, match="is not signed"):
        EngineCache(place).publish(identity, FILES)


def test_another_teams_signature_is_refused(place: str, identity: Identity, use: Use) -> None:
    use(ANOTHER)
    EngineCache(place).publish(identity, FILES)
    use(SECRET)
    with pytest.raises(CacheError, match="was changed, or signed with another key"):
        EngineCache(place).find(identity)


@pytest.mark.parametrize("signature", ["", "0" * 64, None, 7, [], "\ud800"])
def test_a_wrong_signature_is_refused(tmp_path: Path, identity: Identity, use: Use, signature: Any) -> None:
    use(SECRET)
    cache = EngineCache(tmp_path)
    cache.publish(identity, FILES)
    change(str(tmp_path), manifest_path(identity.key), lambda values: values.update(hmac=signature))
    with pytest.raises(CacheError, match="was changed, or signed with another key"):
        cache.find(identity)


def test_a_plan_of_somebody_else_cannot_be_put_into_a_signed_manifest(
    tmp_path: Path, identity: Identity, use: Use
) -> None:
    use(SECRET)
    EngineCache(tmp_path).publish(identity, FILES)
    use(None)
    mine = Entry(identity=identity, files=EngineCache(tmp_path).publish(identity, FILES).files)
    planted = b"native code"
    forged = json.loads(mine.encode())

    def plant(values: dict[str, Any]) -> None:
        import hashlib

        from trtfleet.trt_actors.cache.identity import canonical

        digest = hashlib.sha256(planted).hexdigest()
        EngineCache(tmp_path).objects.put(f"blobs/{digest}", planted)
        values["files"]["segment-000.plan"] = {"sha256": digest, "size_bytes": len(planted)}
        content = {name: values[name] for name in forged if name not in ("format", "sha256")}
        values["sha256"] = hashlib.sha256(canonical(content)).hexdigest()

    change(str(tmp_path), manifest_path(identity.key), plant)
    # Without a key it is an engine like any other: whoever can write to the cache decides what is in it.
    entry = EngineCache(tmp_path).find(identity)
    assert entry is not None
    assert EngineCache(tmp_path).read(entry, "segment-000.plan") == planted
    use(SECRET)
    with pytest.raises(CacheError, match="was changed"):
        EngineCache(tmp_path).find(identity)


def test_dropping_the_signature_does_not_help(tmp_path: Path, identity: Identity, use: Use) -> None:
    use(SECRET)
    EngineCache(tmp_path).publish(identity, FILES)
    path = manifest_path(identity.key)
    change(str(tmp_path), path, lambda values: (values.pop("hmac"), values.update(format=1)))
    with pytest.raises(CacheError, match="is not signed"):
        EngineCache(tmp_path).find(identity)


def test_a_signed_engine_under_another_key_of_the_cache_is_refused(
    tmp_path: Path, identity: Identity, use: Use
) -> None:
    use(SECRET)
    cache = EngineCache(tmp_path)
    cache.publish(identity, FILES)
    other = Identity.from_json({**identity.as_json(), "options": BuildOptions().as_identity()})
    cache.objects.put(manifest_path(other.key), cache.objects.get(manifest_path(identity.key)) or b"")
    with pytest.raises(CacheError, match="is the manifest of another engine"):
        cache.find(other)


def test_without_a_key_signed_engines_are_as_good_as_others(place: str, identity: Identity, use: Use) -> None:
    use(SECRET)
    published = EngineCache(place).publish(identity, FILES)
    use(None)
    assert EngineCache(place).find(identity) == published


def test_a_job_with_a_key_builds_and_finds(tmp_path: Path, identity: Identity, use: Use) -> None:
    use(SECRET)
    said: list[str] = []
    cache = EngineCache(tmp_path)
    for how in ("built", "found"):
        staged = obtain(cache, identity, lambda: Built(files=FILES), say=said.append)
        assert (staged.how, staged.read("layout.json")) == (how, b"{}")
    assert SECRET not in " ".join(said)


def test_a_batch_size_that_is_not_signed_counts_as_none(tmp_path: Path, identity: Identity, use: Use) -> None:
    size = BatchSize(identity=identity, rows=256)
    objects = EngineCache(tmp_path).objects
    keep_batch_size(objects, size)
    use(SECRET)
    signing = EngineCache(tmp_path).objects
    assert find_batch_size(signing, identity) is None
    keep_batch_size(signing, size)
    assert find_batch_size(signing, identity) == size
    assert find_batch_size(objects, identity) == size
    change(str(tmp_path), f"{BATCHES}/{size.key}.json", lambda values: values.update(rows=1))
    assert find_batch_size(signing, identity) is None


@pytest.fixture
def table() -> CalibrationTable:
    """Of one tensor."""
    return small_table()


def test_a_calibration_table_that_is_not_signed_is_refused(
    place: str, table: CalibrationTable, use: Use
) -> None:
    TableStore(place).put(table)
    use(SECRET)
    store = TableStore(place)
    with pytest.raises(CalibrationError, match="is not signed with key"):
        store.find(table.model, {})
    store.put(table)
    found = store.find(table.model, {})
    assert found is not None
    assert found[1] == table
    use(ANOTHER)
    with pytest.raises(CalibrationError, match="is not signed with key"):
        TableStore(place).all(table.model)


def test_the_key_may_lie_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    monkeypatch.setenv(KEY_FILE, str(path))
    for mode in (0o644, 0o604, 0o660, 0o666):
        path.chmod(mode)
        with pytest.raises(CacheError, match=f"mode {mode:o}") as raised:
            cache_key()
        assert raised.value.hint == f"chmod 600 {path}"
    for mode in (0o600, 0o400, 0o440):
        path.chmod(mode)
        from_file = cache_key()
        assert from_file is not None
        assert from_file.id == CacheKey(SECRET.encode()).id
    use(SECRET)
    with pytest.raises(CacheError, match="both"):
        cache_key()


@pytest.mark.parametrize("secret", ["", "short", " " * 40, "x" * 5000])
def test_a_key_that_protects_nothing_is_refused_and_not_shown(use: Use, secret: str) -> None:
    use(secret)
    with pytest.raises(CacheError, match="16 to 4,096 are wanted") as raised:
        cache_key()
    assert "short" not in str(raised.value)


def test_a_key_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "none"))
    with pytest.raises(CacheError, match="cannot be read: No such file"):
        EngineCache(tmp_path)


def test_a_key_does_not_travel_and_does_not_show(use: Use) -> None:
    use(SECRET)
    key = cache_key()
    assert key is not None
    assert SECRET not in repr(key) + str(vars(EngineCache("/nowhere")))
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(key)
    assert SECRET.encode() not in pickle.dumps(EngineCache("/nowhere"))


def test_a_node_without_the_jobs_key_says_so(use: Use) -> None:
    use(SECRET)
    settings = TensorRTSettings(options=BuildOptions(), model_digest="a" * 64)
    travelled = pickle.dumps(settings)
    assert SECRET.encode() not in travelled
    wanted = pickle.loads(travelled).cache_key_id
    require_key(wanted)
    for other, has in ((None, "has none"), (ANOTHER, "has another one")):
        use(other)
        with pytest.raises(CacheError, match=has) as raised:
            require_key(wanted)
        assert KEY_FILE in raised.value.hint
    require_key("")


def test_the_command_line_lists_unsigned_engines_as_unreadable(
    tmp_path: Path, identity: Identity, use: Use
) -> None:
    EngineCache(tmp_path / "cache").publish(identity, FILES)
    program = "from trtfleet.jobs.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "cache", "list", "--cache", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        env={**os.environ, KEY: SECRET},
        check=False,
    )
    assert "0 engines" in done.stdout, done
    assert "is not signed" in done.stdout
    assert SECRET not in done.stdout + done.stderr
