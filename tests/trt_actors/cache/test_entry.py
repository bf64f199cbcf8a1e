"""Manifests: what they keep, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.entry import FORMAT, Entry, StoredFile, is_newer
from trtfleet.trt_actors.cache.identity import Identity


@pytest.fixture
def entry(identity: Identity) -> Entry:
    files = {"a.plan": StoredFile.of(b"plan"), "layout.json": StoredFile.of(b"{}")}
    extra = {"coverage": 0.97, "native": [["NonZero", "no parser"]]}
    return Entry(identity=identity, files=files, created_s=1e9 + 0.125, host="n1", build_s=3.5, extra=extra)


def test_a_round_trip(entry: Entry) -> None:
    assert Entry.decode(entry.encode(), "there") == entry
    assert entry.size_bytes == 6
    assert entry.key == entry.identity.key


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_changes_nothing(entry: Entry, where: float, bit: int) -> None:
    data = bytearray(entry.encode())
    data[int(where * len(data))] ^= 1 << bit
    try:
        found = Entry.decode(bytes(data), "there")
    except CacheError:
        return
    assert found == entry


@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_a_truncated_manifest_is_refused(entry: Entry, length: int) -> None:
    with pytest.raises(CacheError, match="there is damaged") as raised:
        Entry.decode(entry.encode()[:length], "there")
    assert "trtfleet cache prune --damaged" in raised.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "null", "3", "[]", "{}", '{"format": 1}', '{"format": "2"}', '{"format": 0}', "\xff", "[" * 9999],
)
def test_garbage_is_refused(text: str) -> None:
    data = text.encode("latin-1")
    with pytest.raises(CacheError, match="there is damaged"):
        Entry.decode(data, "there")
    assert not is_newer(data)


def test_a_later_format_is_refused_in_words() -> None:
    data = json.dumps({"format": FORMAT + 1, "anything": []}).encode()
    with pytest.raises(CacheError) as raised:
        Entry.decode(data, "there")
    assert raised.value.fact == "there has format 3, this trtfleet reads format 2"
    assert "upgrade trtfleet" in raised.value.hint
    assert is_newer(data)


@pytest.mark.parametrize(
    "stored",
    [
        {"sha256": "../../../../etc/passwd", "size_bytes": 1},
        {"sha256": "A" * 64, "size_bytes": 1},
        {"sha256": "a" * 64 + "\n", "size_bytes": 1},
        {"sha256": 3, "size_bytes": 1},
        {"sha256": "a" * 64, "size_bytes": -1},
        {"sha256": "a" * 64, "size_bytes": True},
        {"sha256": "a" * 64, "size_bytes": "1"},
    ],
    ids=str,
)
def test_only_digests_become_paths(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        StoredFile(**stored)


def test_checks_name_what_is_wrong(entry: Entry) -> None:
    assert entry.checked("a.plan", b"plan", "blob") == b"plan"
    with pytest.raises(
        CacheError, match=r"a.plan of engine .* is damaged: blob has 5 bytes, the manifest says 4"
    ):
        entry.checked("a.plan", b"plan+", "blob")
    with pytest.raises(CacheError, match=r"is damaged: blob has SHA-256 .*, the manifest says"):
        entry.checked("a.plan", b"plaN", "blob")
    with pytest.raises(CacheError, match=r"has no file 'b.plan', it has a.plan, layout.json"):
        entry.file("b.plan")
