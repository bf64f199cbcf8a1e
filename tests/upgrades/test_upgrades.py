"""What earlier versions left behind: outputs are resumed, caches and tables used; later formats are refused.

``fixtures`` has a folder for each format of an output that was ever written; ``make_fixture.py`` made it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.datasets.naming import final_name
from trtfleet.datasets.records import FORMAT as OUTPUT_FORMAT
from trtfleet.datasets.records import CommitRecord, JobRecord, RunRecord, SuccessRecord
from trtfleet.errors import CacheError, CalibrationError, OutputError
from trtfleet.trt_actors.cache.batch_sizes import KeptBatchSizes
from trtfleet.trt_actors.cache.entry import FORMAT as ENTRY_FORMAT
from trtfleet.trt_actors.cache.entry import Entry, is_newer
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.calibration.table import FORMAT as TABLE_FORMAT
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore

from .make_fixture import BUCKET, OPTIONS

FIXTURES = Path(__file__).with_name("fixtures")
FORMATS = sorted(path.name for path in FIXTURES.iterdir())


def test_every_format_of_an_output_has_a_fixture() -> None:
    assert [f"format-{number}" for number in range(1, OUTPUT_FORMAT + 1)] == FORMATS


@pytest.fixture(params=FORMATS)
def fixture(request: pytest.FixtureRequest) -> Path:
    """What a version left behind."""
    return FIXTURES / request.param


@pytest.fixture
def bucket_of(fixture: Path, s3_environment: dict[str, str]) -> Iterator[Path]:
    """The fixture, with its outputs and its dataset in the bucket that they are of."""
    bucket = boto3.resource("s3").create_bucket(Bucket=BUCKET)
    bucket.put_object(Key="data/data.parquet", Body=(fixture / "input" / "data.parquet").read_bytes())
    for name in ("finished", "interrupted"):
        for path in (fixture / name).rglob("*"):
            if path.is_file():
                bucket.put_object(Key=str(path.relative_to(fixture)), Body=path.read_bytes())
    yield fixture
    bucket.objects.delete()
    bucket.delete()


@pytest.mark.usefixtures("ray_session")
def test_an_interrupted_output_is_resumed(bucket_of: Path, tmp_path: Path) -> None:
    out = f"s3://{BUCKET}/interrupted"
    before = trtfleet.status(out)
    assert (before.shards_done, before.shards_total, before.rows) == (5, 6, 50)
    model = bucket_of / "input" / "model.onnx"
    assert trtfleet.score(model, f"s3://{BUCKET}/data/", out, **OPTIONS).rows == 60
    after = trtfleet.status(out)
    assert (after.state, after.runs) == ("finished", 2)
    client = boto3.client("s3")
    committed = sorted((bucket_of / "interrupted").rglob(f"{before.generation}/commits/*.json"))
    assert len(committed) == 5
    for path in committed:
        body = client.get_object(Bucket=BUCKET, Key=str(path.relative_to(bucket_of)))["Body"].read()
        assert body == path.read_bytes()
    # Nothing of an earlier generation is left beside it, under whatever name.
    keys = [
        found["Key"] for found in client.list_objects_v2(Bucket=BUCKET, Prefix="interrupted/p")["Contents"]
    ]
    assert keys == [f"interrupted/{final_name(0, before.generation)}"]
    merged = tmp_path / "merged.parquet"
    client.download_file(BUCKET, keys[0], str(merged))
    (expected,) = (bucket_of / "finished").glob("*.parquet")
    assert pq.read_table(merged).equals(pq.read_table(expected))


def test_a_finished_output_stays_as_it_is(bucket_of: Path) -> None:
    model = bucket_of / "input" / "model.onnx"
    summary = trtfleet.score(model, f"s3://{BUCKET}/data/", f"s3://{BUCKET}/finished", **OPTIONS)
    assert summary.rows == 60
    assert trtfleet.status(f"s3://{BUCKET}/finished").state == "finished"
    body = boto3.client("s3").get_object(Bucket=BUCKET, Key="finished/_SUCCESS")["Body"].read()
    assert body == (bucket_of / "finished" / "_SUCCESS").read_bytes()


def test_a_cache_is_used_as_it_is(fixture: Path, tmp_path: Path) -> None:
    shutil.copytree(fixture / "cache", tmp_path / "cache")
    cache = EngineCache(tmp_path / "cache")
    contents = cache.contents()
    assert contents.unreadable == ()
    (entry,) = contents.entries
    assert cache.find(entry.identity) == entry
    assert cache.verify(entry) == []
    assert cache.read(entry, "segment-000.plan") == b"a plan"
    (size,) = KeptBatchSizes.of(cache.objects).sizes
    assert (size.rows, size.key) == (256, entry.key)
    found = TableStore(tmp_path / "cache").find("b" * 64, {"normalize": None})
    assert found is not None
    assert found[1].scales == {"x": found[1].tensors["x"].scale}
    # Equal tables are equal bytes, in this version as in that one: their digest is in fingerprints.
    (path,) = (fixture / "cache" / "calibration").rglob("*.json")
    assert found[1].encode() == path.read_bytes()


def test_an_entry_of_the_first_format_is_written_again_byte_for_byte(fixture: Path) -> None:
    (path,) = (fixture / "cache" / "entries").iterdir()
    assert Entry.decode(path.read_bytes(), "there").encode() == path.read_bytes()


LATER: list[tuple[Callable[[bytes, str], object], int, type[Exception]]] = [
    (JobRecord.decode, OUTPUT_FORMAT, OutputError),
    (CommitRecord.decode, OUTPUT_FORMAT, OutputError),
    (RunRecord.decode, OUTPUT_FORMAT, OutputError),
    (SuccessRecord.decode, OUTPUT_FORMAT, OutputError),
    (Entry.decode, ENTRY_FORMAT, CacheError),
    (CalibrationTable.decode, TABLE_FORMAT, CalibrationError),
]


@pytest.mark.parametrize("index", range(len(LATER)))
def test_a_later_format_is_refused_with_the_way_out(index: int) -> None:
    decode, ours, kind = LATER[index]
    data = json.dumps({"format": ours + 1, "and": "fields that nobody knows yet"}).encode()
    with pytest.raises(kind, match=f"has format {ours + 1}, this trtfleet reads format {ours}") as raised:
        decode(data, "it")
    assert "upgrade trtfleet" in str(raised.value)


def test_a_later_manifest_is_never_pruned_as_damaged() -> None:
    assert is_newer(json.dumps({"format": ENTRY_FORMAT + 1}).encode())
    assert not is_newer(json.dumps({"format": ENTRY_FORMAT}).encode())


def test_an_unfinished_output_of_a_later_version_is_left_alone(tmp_path: Path, fixture: Path) -> None:
    out = tmp_path / "out"
    record = out / "_trtfleet" / "g0001" / "job.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"format": OUTPUT_FORMAT + 1}))
    before = sorted(path for path in out.rglob("*"))
    source = fixture / "input"
    with pytest.raises(OutputError, match="has format"):
        trtfleet.score(source / "model.onnx", source / "data.parquet", out, **OPTIONS)
    assert sorted(path for path in out.rglob("*")) == before
