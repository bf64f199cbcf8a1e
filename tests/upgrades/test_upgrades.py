"""What earlier versions left behind: outputs are resumed, caches and tables used; later formats are refused.

``fixtures`` has a folder for each format of an output that was ever written; ``make_fixture.py`` made it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
import trtfleet
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


@pytest.mark.ray
def test_an_interrupted_output_is_resumed(
    bucket_of: Path, tmp_path: Path, without_ray: dict[str, str]
) -> None:
    before = trtfleet.status(f"s3://{BUCKET}/interrupted")
    assert (before.shards_done, before.shards_total, before.rows) == (5, 6, 50)
    flags = "--input x=x --keep id --shard-bytes 400 --batch-size 8 --backend onnxruntime-cpu --actors 1"
    places = [str(bucket_of / "input" / "model.onnx"), f"s3://{BUCKET}/data/", f"s3://{BUCKET}/interrupted"]
    program = [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()", "score"]
    # A process of its own: actors of a cluster that runs already would not know this bucket's server.
    done = subprocess.run(
        [*program, *places, *flags.split(), "--json"],
        env=without_ray,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 60
    after = trtfleet.status(f"s3://{BUCKET}/interrupted")
    assert (after.state, after.runs) == ("finished", 2)
    client = boto3.client("s3")
    committed = {path.name for path in (bucket_of / "interrupted").rglob("commits/*.json")}
    for name in committed:
        key = f"interrupted/_trtfleet/g0001/commits/{name}"
        body = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert body == (bucket_of / key).read_bytes()
    merged = tmp_path / "merged.parquet"
    client.download_file(BUCKET, "interrupted/part-00000.parquet", str(merged))
    assert pq.read_table(merged).equals(pq.read_table(bucket_of / "finished" / "part-00000.parquet"))


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
