from __future__ import annotations

import json
import math
import pickle
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.errors import ModelError
from trtfleet.trt_actors.paddle import Converter, convert_paddle, installed_converter, is_paddle_model
from trtfleet.trt_actors.paddle_parameters import check_parameters, stored_shapes

PIR = b'{"base_code": {"magic": "pir", "version": 4}, "program": {}}'


def network(*shapes: Sequence[int]) -> bytes:
    """A network with parameters of these shapes, as Paddle writes it."""
    operations = [
        {
            "#": "p",
            "A": [0, 1, 1, f"w_{n}"],
            "O": {"%": n, "TT": {"#": "0.t_dtensor", "D": [{}, shape, "NCHW"]}},
        }
        for n, shape in enumerate(shapes)
    ]
    program = {"regions": [{"#": "region_0", "blocks": [{"#": "block_0", "ops": operations}]}]}
    return json.dumps({"base_code": {"magic": "pir", "version": 4}, "program": program}).encode()


def tensor(shape: Sequence[int], fill: bytes = b"w", type_number: int = 5, item_bytes: int = 4) -> bytes:
    """A tensor in a parameter file, as Paddle writes it; sizes up to 127."""
    description = bytes([0x08, type_number]) + b"".join(bytes([0x10, size]) for size in shape)
    head = struct.pack("<IQIi", 0, 0, 0, len(description))
    return head + description + fill * (math.prod(shape) * item_bytes)


STAND_IN = """
import argparse, hashlib, pathlib, sys
parser = argparse.ArgumentParser()
for name in ("model_dir", "model_filename", "params_filename", "save_file", "opset_version", "optimize_tool"):
    parser.add_argument("--" + name, required=True)
args = parser.parse_args()
folder = pathlib.Path(args.model_dir)
log = pathlib.Path(__file__).with_name("calls")
with log.open("a") as file:
    file.write(args.model_filename + chr(10))
data = (folder / args.model_filename).read_bytes() + (folder / args.params_filename).read_bytes()
pathlib.Path(args.save_file).write_text(hashlib.sha256(data).hexdigest())
"""


def save(
    folder: Path, stem: str = "inference", suffix: str = ".json", parameters: bytes = tensor([3])
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}{suffix}"
    path.write_bytes(PIR if suffix == ".json" else b"\x0a\x01")
    path.with_suffix(".pdiparams").write_bytes(parameters)
    return path


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., Converter]:
    """Makes a converter of some Python code; by default one that counts its calls in a file beside it."""

    def make(code: str = STAND_IN, version: str = "1.0") -> Converter:
        script = tmp_path / "bin" / "convert.py"
        script.parent.mkdir(exist_ok=True)
        script.write_text(code)
        return Converter(command=(sys.executable, str(script)), version=version)

    return make


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], int]:
    def count() -> int:
        log = tmp_path / "bin" / "calls"
        return len(log.read_text().splitlines()) if log.exists() else 0

    return count


def refused(
    path: Path, *parts: str, converter: Converter | None = None, cache: Path | None = None
) -> ModelError:
    cache = cache or path.parent / "refused-cache"
    never = Converter(command=("/nonexistent",), version="0")
    with pytest.raises(ModelError) as caught:
        convert_paddle(path, cache, converter or never)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.fact.startswith(f"{path}: ")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert not cache.is_dir() or not list(cache.iterdir())
    return caught.value


# What counts as a Paddle model


@pytest.mark.parametrize("suffix", [".json", ".pdmodel"])
def test_recognizes_files_and_folders(tmp_path: Path, suffix: str) -> None:
    model = save(tmp_path / "m", suffix=suffix)
    assert is_paddle_model(model)
    assert is_paddle_model(str(model))
    assert is_paddle_model(model.parent)
    assert is_paddle_model(model.with_suffix(".pdiparams"))


def test_recognizes_models_that_are_not_whole(tmp_path: Path) -> None:
    assert is_paddle_model(tmp_path / "absent.pdmodel")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.pdiparams").touch()
    assert is_paddle_model(tmp_path / "m")


def test_leaves_everything_else_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.onnx").touch()
    assert not is_paddle_model(tmp_path)
    assert not is_paddle_model(tmp_path / "model.onnx")
    assert not is_paddle_model(tmp_path / "absent")
    assert not is_paddle_model("")


def test_a_folder_named_like_a_model_is_judged_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "net.json").mkdir()
    assert not is_paddle_model(tmp_path / "net.json")
    save(tmp_path / "net.json")
    assert is_paddle_model(tmp_path / "net.json")


def test_recognizing_imports_no_paddle() -> None:
    code = (
        "import sys; from trtfleet.trt_actors.paddle import is_paddle_model; "
        "assert is_paddle_model('a.pdmodel'); assert not {'paddle', 'paddle2onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is wrong with a model


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "absent.json", "absent.json: does not exist")
    model = save(tmp_path)
    model.with_suffix(".pdiparams").unlink()
    refused(model, "has no inference.pdiparams beside it", "both files")
    refused(tmp_path, "no whole Paddle model, only inference.json", "paddle.jit.save")


def test_parameters_alone(tmp_path: Path) -> None:
    model = save(tmp_path / "m")
    refused(model.with_suffix(".pdiparams"), "holds only parameters", "name the .json or .pdmodel")
    model.unlink()
    refused(model.parent, "no whole Paddle model, only inference.pdiparams", "paddle.jit.save")


def test_folders_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    refused(tmp_path / "m", "is a folder without any file")
    (tmp_path / "m" / "notes.txt").touch()
    refused(tmp_path / "m", "is a folder without a Paddle model", "name an .onnx file")


def test_two_models_in_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "m", "a")
    save(tmp_path / "m", "b", ".pdmodel")
    refused(tmp_path / "m", "holds 2 Paddle models: a.json, b.pdmodel", "name one of these files")
    save(tmp_path / "n", "a")
    save(tmp_path / "n", "a", ".pdmodel")
    refused(tmp_path / "n", "holds 2 Paddle models: a.json, a.pdmodel")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    refused(tmp_path / "model.onnx", "is no Paddle model")
    model = save(tmp_path / "m")
    model.with_suffix(".pdiparams").unlink()
    model.with_suffix(".pdiparams").mkdir()
    refused(model, "inference.pdiparams is not a regular file")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty (0 bytes)"),
        (b"hello", "no JSON with base_code.magic"),
        (PIR[: len(PIR) // 2], "truncated"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff\xfe\x00", "no JSON"),
        (b"[1, 2]", "no JSON with base_code.magic"),
        (b'{"base_code": {"magic": "pir"}}', "no JSON with base_code.magic and program"),
        (b'{"base_code": {"magic": "pir"}, "program": [{"#": "p"}]}', "a parameter without a shape"),
        (b'{"base_code": "pir"}', "no JSON with base_code.magic"),
        (
            b'{"base_code": {"magic": "other\\n"}, "program": {}}',
            "its base_code.magic is 'other\\n', not 'pir'",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_networks_that_are_none(tmp_path: Path, content: bytes, part: str) -> None:
    model = save(tmp_path)
    model.write_bytes(content)
    refused(model, part)


@pytest.mark.parametrize("suffix", [".pdmodel", ".pdiparams"])
def test_empty_files(tmp_path: Path, suffix: str) -> None:
    model = save(tmp_path, suffix=".pdmodel")
    model.with_suffix(suffix).write_bytes(b"")
    refused(model, f"inference{suffix} is empty (0 bytes)")


# Parameter files: Paddle and paddle2onnx read past the end of one without a word


def test_parameters_of_every_shape_and_type(tmp_path: Path) -> None:
    path = tmp_path / "a.pdiparams"
    shapes = [(2, 3), (), (0, 5), (127,)]
    half = tensor((4,), type_number=4, item_bytes=2)
    path.write_bytes(b"".join(map(tensor, shapes)) + half)
    assert stored_shapes(path) == [*shapes, (4,)]


@given(
    shapes=st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=3),
    data=st.data(),
)
def test_every_truncation_is_refused(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("m")
    whole = b"".join(map(tensor, shapes))
    path = save(folder, parameters=whole)
    path.write_bytes(network(*shapes))
    check_parameters(path, path.with_suffix(".pdiparams"))
    path.with_suffix(".pdiparams").write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    refused(folder)


# Hypothesis also tries constants that it finds in the product, and this one has an error of its own.
@given(
    content=st.binary(min_size=1, max_size=200).filter(
        lambda it: not it.startswith(b"version https://git-lfs")
    )
)
def test_noise_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = save(tmp_path_factory.mktemp("m"), suffix=".pdmodel", parameters=content)
    refused(path, "inference.pdiparams is not a Paddle parameter file: no tensor at byte 0")


def test_parameters_of_another_model(tmp_path: Path) -> None:
    path = save(tmp_path, parameters=tensor([2, 3]) + tensor([5]))
    path.write_bytes(network([5], [3, 2], [5]))
    refused(path, "holds 2 tensors", "needs 3 and lacks 2 of them", "different models")
    path.write_bytes(network([5], [2, 3]))
    check_parameters(path, path.with_suffix(".pdiparams"))


@pytest.mark.parametrize(
    ("parameters", "part"),
    [
        (tensor([3])[:-1], "is truncated: its tensor 0 ends at byte 36, the file at 35"),
        (tensor([3]) + b"\0", "no tensor at byte 36 of 37"),
        (tensor([3], type_number=99), "no tensor at byte 0"),
        (struct.pack("<IQIi", 0, 0, 0, 2**31 - 1), "no tensor at byte 0"),
        (struct.pack("<IQIi", 0, 0, 0, 2) + b"\xff\xff", "no tensor at byte 0"),
        (struct.pack("<IQIi", 0, 1, 0, 2) + b"\x08\x05", "no tensor at byte 0"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
    ],
)
def test_damaged_parameters(tmp_path: Path, parameters: bytes, part: str) -> None:
    refused(save(tmp_path, parameters=parameters), part)


# What converts


@pytest.mark.skipif(find_spec("paddle2onnx") is not None, reason="paddle2onnx is installed here")
def test_without_paddle2onnx_the_error_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="paddle2onnx and paddle not installed here") as caught:
        convert_paddle(save(tmp_path), tmp_path / "cache")
    assert caught.value.hint == "pip install 'trtfleet[paddle]'"
    with pytest.raises(ModelError):
        installed_converter()


def test_a_broken_model_is_reported_before_a_missing_converter(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        convert_paddle(tmp_path / "absent.json")


def test_converts_once(tmp_path: Path, program: Callable[..., Converter], calls: Callable[[], int]) -> None:
    model, cache = save(tmp_path / "m"), tmp_path / "cache"
    result = convert_paddle(model, cache, program())
    assert result.is_relative_to(cache)
    assert result.name == "model.onnx"
    assert convert_paddle(model.parent, cache, program()) == result
    elsewhere = save(tmp_path / "copy", "other name")
    assert convert_paddle(str(elsewhere), str(cache), program()) == result
    assert calls() == 1
    assert [file.name for file in cache.iterdir()] == [result.parent.name]


def test_anything_that_changes_converts_anew(
    tmp_path: Path, program: Callable[..., Converter], calls: Callable[[], int]
) -> None:
    model, cache = save(tmp_path / "m"), tmp_path / "cache"
    results = [convert_paddle(model, cache, program())]
    model.with_suffix(".pdiparams").write_bytes(tensor([3], b"W"))
    results.append(convert_paddle(model, cache, program()))
    model.write_bytes(PIR + b" ")
    results.append(convert_paddle(model, cache, program()))
    results.append(convert_paddle(model, cache, program(version="1.1")))
    assert len(set(results)) == calls() == 4
    assert len({result.read_text() for result in results[:3]}) == 3


def test_the_cache_is_the_users_own(
    tmp_path: Path, program: Callable[..., Converter], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path / "m")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    result = convert_paddle(model, converter=program())
    assert result.is_relative_to(tmp_path / "xdg" / "trtfleet" / "paddle")
    assert stat.S_IMODE((tmp_path / "xdg" / "trtfleet" / "paddle").stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = convert_paddle(model, converter=program())
    assert result.is_relative_to(tmp_path / "home" / ".cache" / "trtfleet" / "paddle")


def test_relative_paths(
    tmp_path: Path, program: Callable[..., Converter], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    for path in ("m", "m/inference.json"):
        assert convert_paddle(path, "cache", program()).is_file()
    monkeypatch.chdir(tmp_path / "m")
    assert convert_paddle("inference.json", "../cache", program()).is_file()


def test_processes_at_once_share_one_result(
    tmp_path: Path, program: Callable[..., Converter], calls: Callable[[], int]
) -> None:
    model, cache = save(tmp_path / "m"), tmp_path / "cache"
    # Each conversion waits until both have begun: neither finds the other's result beforehand.
    meet = STAND_IN + "import time\nwhile len(log.read_text().splitlines()) < 2: time.sleep(0.01)\n"
    converter = program(meet)
    code = (
        "import sys; from trtfleet.trt_actors.paddle import Converter, convert_paddle; "
        "print(convert_paddle(sys.argv[1], sys.argv[2], Converter(command=tuple(sys.argv[3:]), version='1')))"
    )
    command = [sys.executable, "-c", code, str(model), str(cache), *converter.command]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(printed) == 1
    assert Path(printed.pop().strip()).is_file()
    assert calls() == 2
    assert len(list(cache.iterdir())) == 1


# Conversions that fail


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("raise ValueError('bad operator')", ["exit code 1", "ValueError: bad operator"]),
        (
            "print('Error: unknown operator'); print('bye'); raise SystemExit(3)",
            ["exit code 3: Error: unknown"],
        ),
        ("raise SystemExit(4)", ["exit code 4: it said nothing"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ["killed by SIGSEGV: it said nothing"]),
        ("print('\\x1b[31mstopped\\x1b[0m\\n-----\\n')", ["it wrote no model: stopped"]),
        ("import sys; open(sys.argv[sys.argv.index('--save_file') + 1], 'w')", ["it wrote no model"]),
        (
            "import sys; sys.stdout.buffer.write(b'\\xff error ' + b'x' * 9999); sys.exit(1)",
            ["error xxx", "..."],
        ),
    ],
)
def test_failures_are_errors_with_the_last_words(
    tmp_path: Path, program: Callable[..., Converter], code: str, parts: list[str]
) -> None:
    model = save(tmp_path / "m")
    error = refused(model, *parts, converter=program(code), cache=tmp_path / "cache")
    assert len(error.fact) < 1000
    assert convert_paddle(model, tmp_path / "cache", program()).is_file()


def test_a_converter_that_cannot_start(tmp_path: Path) -> None:
    refused(save(tmp_path / "m"), "it does not start: ", cache=tmp_path / "cache")


def test_a_model_that_changes_meanwhile_is_not_kept(
    tmp_path: Path, program: Callable[..., Converter]
) -> None:
    model = save(tmp_path / "m")
    grow = STAND_IN + "with (folder / args.params_filename).open('ab') as file: file.write(bytes(4))\n"
    refused(model, "changed while it was converted", converter=program(grow), cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written(tmp_path: Path, program: Callable[..., Converter]) -> None:
    (tmp_path / "file").touch()
    model = save(tmp_path / "m")
    refused(model, "cannot be used", "XDG_CACHE_HOME", converter=program(), cache=tmp_path / "file" / "cache")
