"""Tables beside the engine cache: which one is found, and what happens to damaged ones."""

from __future__ import annotations

import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from trtfleet.datasets.storage import Storage
from trtfleet.errors import CacheError, CalibrationError
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.calibration.thresholds import Method

MODEL, OTHER = "a" * 64, "b" * 64
PLAIN = {"normalize": None}
STATISTICS = {"x": TensorStatistics.of(np.arange(100, dtype=np.float32))}


def table(
    method: str = "entropy", model: str = MODEL, feed: dict[str, object] = PLAIN, seed: int = 0
) -> CalibrationTable:
    return CalibrationTable.from_statistics(
        STATISTICS,
        model=model,
        model_name="net.onnx",
        method=Method.parse(method),
        samples=100,
        seed=seed,
        batch_size=32,
        feed=feed,
    )


def test_a_table_is_found_by_model_and_feed(place: str) -> None:
    store = TableStore(place)
    assert store.find(MODEL, PLAIN) is None
    url = store.put(table())
    assert url == f"{store.url}/calibration/{MODEL}/000001.json"
    assert store.find(MODEL, PLAIN) == (url, table())
    assert store.find(OTHER, PLAIN) is None
    assert store.find(MODEL, {"normalize": "imagenet"}) is None
    assert Storage(store.url).get(f"calibration/{MODEL}/000001.json") == table().encode()


def test_of_several_the_one_stored_last_is_found(place: str) -> None:
    store = TableStore(place)
    for method in ("mse", "entropy", "minmax"):
        store.put(table(method))
    store.put(table("mse", feed={"normalize": "imagenet"}))
    store.put(table("percentile:99.9", model=OTHER))
    found = store.find(MODEL, PLAIN)
    assert found is not None
    assert found[1].method == "minmax"
    by_method = store.find(MODEL, PLAIN, "entropy")
    assert by_method is not None
    assert by_method[0].endswith("/000002.json")
    assert [each.method for _, each in store.all(MODEL)] == ["mse", "minmax", "entropy", "mse"]
    assert len(store.all(OTHER)) == 1


def test_storing_the_newest_again_changes_nothing_and_an_older_one_makes_it_the_newest(place: str) -> None:
    store = TableStore(place)
    first = store.put(table("mse"))
    assert store.put(table("mse")) == first
    store.put(table("minmax"))
    again = store.put(table("mse"))
    assert again.endswith("/000003.json")
    assert store.find(MODEL, PLAIN) == (again, table("mse"))


def test_tables_stored_at_once_get_a_number_each(place: str) -> None:
    store = TableStore(place)
    tables = [table(seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(store.put, tables))
    assert sorted(urls) == [f"{store.url}/calibration/{MODEL}/{n:06d}.json" for n in range(1, 9)]
    assert dict(store.all(MODEL)) == dict(zip(urls, tables, strict=True))


def test_a_damaged_table_is_an_error_that_names_its_file(tmp_path: Path) -> None:
    store = TableStore(tmp_path)
    store.put(table("mse"))
    path = Path(store.put(table("entropy")))
    path.write_bytes(path.read_bytes()[:-9])
    for look in (lambda: store.find(MODEL, PLAIN), lambda: store.all(MODEL)):
        with pytest.raises(CalibrationError, match=f"{path} is no calibration table or a damaged one"):
            look()
    store.put(table("minmax"))
    found = store.find(MODEL, PLAIN)
    assert found is not None
    assert found[1].method == "minmax"


def test_a_table_under_another_model_s_digest_is_refused(tmp_path: Path) -> None:
    store = TableStore(tmp_path)
    path = Path(store.put(table()))
    moved = tmp_path / "calibration" / OTHER / path.name
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    with pytest.raises(
        CalibrationError, match=r"000001\.json is of another model, net\.onnx with digest aaaa"
    ):
        store.find(OTHER, PLAIN)


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    store = TableStore(tmp_path)
    path = Path(store.put(table()))
    for other in ("notes.txt", "work/abc/000009.json", "7.json"):
        (path.parent / other).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / other).write_bytes(b"{}")
    assert store.all(MODEL) == [(str(path), table())]
    assert store.put(table("mse")).endswith("/000002.json")


def test_the_default_is_the_engine_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "kept"))
    url = TableStore().put(table())
    assert url.startswith(f"{tmp_path}/kept/calibration/")
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_looking_creates_nothing(tmp_path: Path) -> None:
    assert TableStore(tmp_path / "none").find(MODEL, PLAIN) is None
    assert TableStore(tmp_path / "none").all(MODEL) == []
    assert not (tmp_path / "none").exists()


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot be written"):
        TableStore(tmp_path / "file").put(table())


def test_a_store_travels_by_its_url(tmp_path: Path) -> None:
    store = TableStore(tmp_path)
    assert pickle.loads(pickle.dumps(store)) == store
    assert hash(pickle.loads(pickle.dumps(store))) == hash(store)
    assert store != TableStore(tmp_path / "other")
