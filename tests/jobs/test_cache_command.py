"""What ``trtfleet cache`` tells and does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import CacheError, UsageError
from trtfleet.jobs.cache import list_cache, prune_cache, show_engine, verify_cache
from trtfleet.trt_actors.cache.batch_sizes import BatchSize, keep_batch_size
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.objects import BATCHES, ENTRIES, blob_path
from trtfleet.trt_actors.cache.store import EngineCache

IDENTITY = Identity(
    model="a" * 64,
    options={"precision": "fp16", "profiles": ["x=1,2,3"], "workspace_size": None},
    flavour="tensorrt-rtx",
    version="1.7.1",
    compute_capability="8.9",
    gpu="NVIDIA L4",
)


@pytest.fixture
def engines(place: str) -> list[Entry]:
    """Two engines in a cache, the older first."""
    cache = EngineCache(place)
    extra = {"coverage": 0.975}
    return [
        cache.publish(IDENTITY, {"a.plan": b"x" * 3000, "layout": b"{}"}, build_s=2.5, extra=extra),
        cache.publish(replace(IDENTITY, model="b" * 64), {"a.plan": b"y"}),
    ]


def plain(result: Any) -> Any:
    """The result as JSON, which must hold plain values only, and its words as one text."""
    assert all("\n" not in line for line in result.lines())
    return json.loads(json.dumps(result.as_json())), "\n".join(result.lines())


def test_list(place: str, engines: list[Entry]) -> None:
    values, text = plain(list_cache(place))
    assert [engine["key"] for engine in values["engines"]] == [entry.key for entry in engines]
    assert values["engines"][0]["size_bytes"] == 3002
    first, _, last = text.splitlines()
    assert first.startswith(
        f"{engines[0].key[:12]}  model {'a' * 12}  fp16  tensorrt-rtx 1.7.1  NVIDIA L4 (8.9)"
    )
    assert "2.9 KiB in 2 files" in first
    assert last == f"2 engines, 2.9 KiB in {EngineCache(place).url}"


def test_list_of_an_empty_cache(tmp_path: Path) -> None:
    assert list_cache(str(tmp_path / "none")).lines() == [f"0 engines, 0 bytes in {tmp_path}/none"]


def test_list_names_what_cannot_be_read(place: str, engines: list[Entry]) -> None:
    EngineCache(place).objects.put(f"{ENTRIES}/{engines[0].key}.json", b"{")
    values, text = plain(list_cache(place))
    assert len(values["engines"]) == 1
    assert "unreadable: " in text
    assert f"{engines[0].key}.json is damaged" in text


def test_show(place: str, engines: list[Entry]) -> None:
    values, text = plain(show_engine(engines[0].key[:5], place))
    assert values["manifest"] == json.loads(json.dumps(engines[0].as_json()))
    lines = text.splitlines()
    assert lines[0] == f"engine {engines[0].key} in {EngineCache(place).url}"
    for line in ("option precision: fp16", "option workspace_size: none", "plugins: none", "coverage: 0.975"):
        assert line in lines
    assert f"file layout: 2 bytes, SHA-256 {engines[0].file('layout').sha256}" in lines
    assert any(" in 2.5 s, published 20" in line for line in lines)


def test_a_key_that_fits_none_or_several(place: str, engines: list[Entry]) -> None:
    with pytest.raises(UsageError, match=r"no engine in .* begins with 'xyz'") as raised:
        show_engine("xyz", place)
    assert engines[0].key[:12] in raised.value.hint
    with pytest.raises(UsageError, match=r"2 engines in .* begin with ''") as raised:
        show_engine("", place)
    assert engines[1].key[:12] in raised.value.hint
    prune_cache(place, everything=True)
    with pytest.raises(UsageError) as raised:
        verify_cache(place, "xyz")
    assert raised.value.hint == "it has none"


def test_verify(place: str, engines: list[Entry]) -> None:
    values, text = plain(verify_cache(place))
    assert (len(values["good"]), values["damage"]) == (2, {})
    assert text.startswith("2 engines are sound, 0 damaged, 2.9 KiB in ")
    verify_cache(place).check()
    cache = EngineCache(place)
    cache.objects.put(blob_path(engines[0].file("layout").sha256), b"[]")
    cache.objects.put(f"{ENTRIES}/{engines[1].key}.json", b"{")
    found = verify_cache(place)
    values, text = plain(found)
    assert set(values["damage"]) == {entry.key for entry in engines}
    assert f"damaged: layout of engine {engines[0].key[:12]} is damaged" in text
    with pytest.raises(CacheError, match=r"2 engines in .* are damaged") as raised:
        found.check()
    assert "--damaged" in raised.value.hint
    assert raised.value.exit_code == 15
    assert verify_cache(place, engines[0].key[:8]).good == ()


def test_prune(place: str, engines: list[Entry]) -> None:
    values, text = plain(prune_cache(place, everything=True, dry_run=True))
    assert len(values["engines"]) == 2
    assert "would remove 2 engines, 3 contents (2.9 KiB)" in text
    assert len(list_cache(place).engines) == 2
    assert plain(prune_cache(place))[0]["engines"] == []
    assert prune_cache(place, older_than_s=3600).engines == ()
    _, text = plain(prune_cache(place, keys=(engines[0].key[:9],)))
    assert "removed 1 engines, 2 contents" in text
    assert [engine.key for engine in list_cache(place).engines] == [engines[1].key]
    assert len(prune_cache(place, model="b").engines) == 1
    assert list_cache(place).engines == ()


def test_prune_of_what_is_damaged(place: str, engines: list[Entry]) -> None:
    cache = EngineCache(place)
    good = cache.publish(replace(IDENTITY, model="c" * 64), {"a.plan": b"z"})
    cache.objects.put(blob_path(engines[0].file("layout").sha256), b"[]")
    cache.objects.put(f"{ENTRIES}/{engines[1].key}.json", b"{")
    _, text = plain(prune_cache(place, damaged=True))
    assert "removed 2 engines, 3 contents" in text
    assert f"{engines[1].key[:12]}  damaged" in text
    assert cache.entries() == (good,)
    verify_cache(place).check()


@pytest.fixture
def size(place: str, engines: list[Entry]) -> BatchSize:
    """A batch size beside the engines."""
    identity = replace(IDENTITY, flavour="onnxruntime-cuda", version="1.31.1", options={})
    made = BatchSize(identity=identity, rows=256, rows_per_s=11_700.4)
    keep_batch_size(EngineCache(place).objects, made)
    return made


def test_list_shows_remembered_batch_sizes(place: str, size: BatchSize) -> None:
    values, text = plain(list_cache(place))
    assert [(one["key"], one["rows"]) for one in values["batch_sizes"]] == [(size.key, 256)]
    *_, line, last = text.splitlines()
    assert line.startswith(
        f"{size.key[:12]}  model {'a' * 12}  batch size 256  onnxruntime-cuda 1.31.1  NVIDIA"
    )
    assert "NVIDIA L4 (8.9)  11,700 rows/s" in line
    assert last == f"2 engines, 2.9 KiB and 1 batch sizes in {EngineCache(place).url}"
    EngineCache(place).objects.put(f"{BATCHES}/{size.key}.json", b"{")
    _, text = plain(list_cache(place))
    assert f"unreadable: the batch size of key {size.key[:12]} is damaged" in text


def test_prune_of_batch_sizes(place: str, size: BatchSize) -> None:
    _, text = plain(prune_cache(place, keys=(size.key[:9],), dry_run=True))
    assert text.splitlines()[-1] == "would remove 1 batch sizes"
    assert prune_cache(place).batch_sizes == ()
    values, _ = plain(prune_cache(place, model="a"))
    assert (len(values["engines"]), len(values["batch_sizes"])) == (1, 1)
    assert list_cache(place).batch_sizes == ()
    EngineCache(place).objects.put(f"{BATCHES}/{size.key}.json", b"{")
    _, text = plain(prune_cache(place, damaged=True))
    assert f"{size.key[:12]}  damaged" in text
    assert list_cache(place).unreadable == ()


def test_a_key_of_an_engine_and_its_batch_size_names_both(place: str, engines: list[Entry]) -> None:
    keep_batch_size(EngineCache(place).objects, BatchSize(identity=IDENTITY, rows=8))
    assert show_engine(engines[0].key[:7], place).key == engines[0].key
    done = prune_cache(place, keys=(engines[0].key[:7],))
    assert (len(done.engines), len(done.batch_sizes)) == (1, 1)


def test_an_age_below_zero_is_refused(place: str) -> None:
    with pytest.raises(UsageError, match="must be >= 0"):
        prune_cache(place, older_than_s=-1)
