"""Options as people write them, in Python, in YAML and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trtfleet.errors import TrtfleetError, UsageError
from trtfleet.jobs.spec import ScoreSpec, load_spec

NEEDED = {"model": "m.onnx", "data": "d", "out": "o"}


def spec(**options: Any) -> ScoreSpec:
    return ScoreSpec.of({**NEEDED, **options})


def test_plain_values_are_understood() -> None:
    made = ScoreSpec.of(
        {
            "model": Path("m.onnx"),
            "data": ["a", Path("b")],
            "out": Path("o"),
            "batch-size": "auto",
            "max-bad-rows": "unlimited",
            "keep": "id",
            "resize": "6x5",
            "input": ["x=a,b", "y=c=d"],
            "fill_null": 1,
        }
    )
    assert made == ScoreSpec(
        model="m.onnx",
        data=("a", "b"),
        out="o",
        batch_size=None,
        max_bad_rows=None,
        keep=("id",),
        resize=(6, 5),
        input={"x": ("a", "b"), "y": ("c=d",)},
        fill_null=1.0,
    )


@pytest.mark.parametrize("given", ["x=a,b", ["x=a,b"], {"x": "a,b"}, {"x": ["a", "b"]}])
def test_inputs_may_be_pairs_or_a_mapping(given: Any) -> None:
    assert spec(input=given).input == {"x": ("a", "b")}


def test_nothing_means_the_default() -> None:
    names = ["input", "keep", "batch_size", "cpus_per_actor", "backend", "emit", "pad_value", "compression"]
    assert spec(**dict.fromkeys(names)) == spec()
    assert spec(max_bad_rows=None).max_bad_rows is None


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"bach_size": 3}, "unknown option 'bach_size'"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number or 'auto', got True"),
        ({"batch_size": "many"}, "batch_size must be a whole number or 'auto', got 'many'"),
        ({"cpus_per_actor": 1.5}, "cpus_per_actor must be a whole number or 'auto', got 1.5"),
        ({"gpus_per_actor": 0}, "gpus_per_actor must be above 0 and at most 1, got 0"),
        ({"gpus_per_actor": 2.0}, "gpus_per_actor must be above 0 and at most 1, got 2"),
        ({"memory_per_actor": 0}, "memory_per_actor must be >= 1, got 0"),
        ({"memory_per_actor": "4GiB"}, "memory_per_actor must be a whole number, got '4GiB'"),
        ({"batch_timeout": 0}, "batch_timeout must be above 0, got 0"),
        ({"batch_timeout": float("nan")}, "batch_timeout must be above 0, got nan"),
        ({"max_bad_rows": -1}, "max_bad_rows must be >= 0, got -1"),
        ({"pad_to": 0}, "pad_to must be >= 1"),
        ({"resize": "0x4"}, "resize must be at least 1x1, got 0x4"),
        ({"resize": "224"}, "resize '224' is no size"),
        ({"resize": "axb"}, "resize 'axb' is no size"),
        ({"resize": 224}, "resize 224 is no size"),
        ({"layout": "hwc"}, "layout must be nhwc or nchw, got 'hwc'"),
        ({"compression": "brotli9"}, "compression 'brotli9' is unknown"),
        ({"keep": ["a", "a"]}, "a column is kept twice: a, a"),
        ({"keep": 3}, "keep must be a text or a list of texts, got 3"),
        ({"keep": ["a", 3]}, "keep must be a text or a list of texts"),
        ({"data": []}, "data is missing"),
        ({"model": None}, "model is missing"),
        ({"columns": ["a"]}, "columns are only chosen for a preprocess hook"),
        ({"mask": ["m"], "preprocess": "a:b"}, "a preprocess hook makes the mask itself"),
        ({"input": "x"}, "input 'x' is mapped to '', no column"),
        ({"input": "=a"}, "input '' is mapped to 'a', no column"),
        ({"input": "x=a,,b"}, "input 'x' is mapped to 'a,,b', no column"),
        ({"input": {"x": None}}, "input 'x' is mapped to None, no column"),
        ({"input": {"x": 5}}, "input 'x' is mapped to 5, no column"),
        ({"input": {"x": []}}, r"input 'x' is mapped to \[\], no column"),
        ({"input": 5}, "input 5 is mapped to '', no column"),
        ({"input": ["x=a", "x=b"]}, "input 'x' is mapped twice"),
        ({"fill_null": "0"}, "fill_null must be a number, got '0'"),
        ({"fill_null": True}, "fill_null must be a number, got True"),
        ({"overwrite": "yes"}, "overwrite must be true or false, got 'yes'"),
        ({"normalize": 7678}, "normalize must be a text, got 7678"),
        ({"normalize": "0:0"}, "normalize needs stds > 0"),
        ({"normalize": "half"}, "normalize 'half' is neither imagenet nor MEAN:STD"),
        ({"emit": "topk"}, "emit 'topk' is not known"),
        ({"emit": "topk:0"}, "topk needs a count >= 1, got 0"),
        ({"filter": "__import__('os')"}, "--filter does not know"),
        ({"filter": "a =="}, "--filter 'a ==' cannot be parsed"),
        ({"backend": "tpu"}, "backend 'tpu' is unknown"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact) as caught:
        spec(**options)
    assert caught.value.hint


def test_a_job_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: m.onnx\ndata: [a, b]\nout: o\nbatch-size: auto\nresize: 224x224\nkeep: id\n")
    assert ScoreSpec.of(load_spec(str(path))) == ScoreSpec(
        model="m.onnx", data=("a", "b"), out="o", resize=(224, 224), keep=("id",)
    )


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"model: [", "is not YAML"),
        (b"\x00\x01", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"[" * 50_000, "is not YAML"),
        (b"", "holds no options"),
        (b"- a\n- b\n", "holds no options"),
        (b"3: 4\n", "holds no options"),
        (b" " * (1 << 20) + b"a", "is larger than 262,144 bytes"),
    ],
)
def test_a_job_file_that_is_none(content: bytes, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=fact) as caught:
        load_spec(str(path))
    assert caught.value.hint
    assert "\n" not in caught.value.fact


def test_a_job_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, fact in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(TrtfleetError, match=f"cannot read {path}: {fact}") as caught:
            load_spec(str(path))
        assert caught.value.exit_code == 2
        assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"min_subgraph_size": 0}, "min_subgraph_size must be >= 1, got 0"),
        ({"optimization_level": 9}, "optimization_level must be 0 to 5, got 9"),
        ({"profile": "ids=1x8,4x8"}, "profile 'ids=1x8,4x8' is malformed"),
        ({"batch_size": 32, "max_batch_size": 8}, "batch_size 32 exceeds max_batch_size 8"),
        ({"use_static": "no"}, "use_static must be true or false, got 'no'"),
    ],
)
def test_engine_options_are_checked_where_the_job_is_described(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        spec(**options)


def test_engines_are_built_for_the_batch_that_is_asked_for() -> None:
    assert spec(batch_size=128).build_options.max_batch_size == 128
    assert spec(batch_size=8, max_batch_size=32).build_options.max_batch_size == 32
    assert spec().build_options.max_batch_size == 64
    assert spec(profile=["ids=1x8,4x8,8x64"]).build_options.profiles[0].max == (8, 64)
