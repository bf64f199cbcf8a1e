"""The parts of submitting that need no cluster: the wheel, addresses and tokens, and how a job ended."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest
import trtfleet
from trtfleet.cluster.job_server import is_this_machine, only_this_address, require_token, url_of
from trtfleet.cluster.submission import JobServer, Submission
from trtfleet.cluster.wheel import NEEDS, pack_wheel, package_files
from trtfleet.errors import ClusterError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DIST_INFO = f"trtfleet-{trtfleet.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    return pack_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder where pip has installed the wheel, without reaching for any index."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", f"--target={target}"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return target


class TestWheel:
    def test_it_holds_every_package_and_its_data(self, wheel: Path) -> None:
        names = set(zipfile.ZipFile(wheel).namelist())
        setup = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
        for package in setup["packages"]:
            folder = REPOSITORY.joinpath(*package.split(".")[1:])
            own = {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
            assert own <= names
        assert {"trtfleet/py.typed", "trtfleet/jobs/demo_data/digits.onnx"} <= names
        assert not [name for name in names if name.startswith(("trtfleet/tests", "trtfleet/benchmarks"))]

    def test_pip_installs_it_and_nothing_else(self, installed: Path) -> None:
        assert {path.name for path in installed.iterdir()} == {"trtfleet", DIST_INFO, "bin"}
        script = "import trtfleet, trtfleet.jobs.cli; print(trtfleet.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(installed)},
            cwd=installed,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == str(installed / "trtfleet" / "__init__.py"), done.stderr

    def test_it_requires_nothing_but_says_what_it_needs(self, installed: Path) -> None:
        described = message_from_string((installed / DIST_INFO / "METADATA").read_text())
        assert described["Version"] == trtfleet.__version__
        assert described["Requires-Python"] == ">=3.11"
        assert "Requires-Dist" not in described
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        needs = (installed / DIST_INFO / NEEDS).read_text().splitlines()
        assert {need.partition(">")[0] for need in needs} == {
            need.partition(">")[0] for need in project["dependencies"]
        }

    def test_the_name_tells_the_contents(self, wheel: Path, tmp_path: Path) -> None:
        again = pack_wheel(tmp_path)
        assert (again.name, again.read_bytes()) == (wheel.name, wheel.read_bytes())
        assert wheel.name.startswith(f"trtfleet-{trtfleet.__version__}-1")

    def test_an_installation_packs_the_same_files(self, wheel: Path, installed: Path) -> None:
        files = package_files(installed / "trtfleet")
        names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("trtfleet/")}
        assert set(files) == names
        assert all(path.is_file() for path in files.values())

    def test_an_installed_version_packs_itself(self, installed: Path, wheel: Path, tmp_path: Path) -> None:
        script = "import sys; from pathlib import Path; from trtfleet.cluster.wheel import pack_wheel; "
        script += "print(pack_wheel(Path(sys.argv[1])).name)"
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == wheel.name, done.stderr

    def test_a_checkout_of_another_version_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.9"\n')
        with pytest.raises(ClusterError, match=r"is version 9\.9"):
            package_files(tmp_path)

    def test_a_folder_without_a_record_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError, match="cannot find the files") as caught:
            package_files(tmp_path / "trtfleet")
        assert "--no-ship" in caught.value.hint


@pytest.fixture
def web_server() -> Iterator[Callable[[int, Any], str]]:
    """Starts servers that answer every request in one way; gives their URLs."""
    servers = []

    def start(code: int, body: Any) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class TestAddress:
    @pytest.mark.parametrize(
        "address", ["127.0.0.1:6379", "auto", "ray://head:10001", "http://", "http://a:x"]
    )
    def test_what_is_no_url_of_a_job_server(self, address: str) -> None:
        with pytest.raises(ClusterError, match="is no address of a job server") as caught:
            url_of(address)
        assert "8265" in caught.value.hint

    @pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://no-such-host.invalid:8265"])
    def test_where_nothing_answers(self, address: str) -> None:
        with pytest.raises(ClusterError, match="nothing answers at"):
            url_of(address)

    def test_a_password_in_it_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ClusterError) as caught:
            url_of("http://me:secret@127.0.0.1:1")
        assert "secret" not in str(caught.value)

    def test_the_variables_of_ray(
        self, web_server: Callable[[int, Any], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, third = (web_server(200, {}) for _ in range(3))
        monkeypatch.setenv("RAY_ADDRESS", first)
        monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        assert url_of(None) == first
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", second)
        assert url_of(None) == second
        assert url_of(f"{third}/") == third
        with only_this_address():
            assert "RAY_ADDRESS" not in os.environ
        assert os.environ["RAY_ADDRESS"] == first

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
    def test_this_machine(self, host: str) -> None:
        assert is_this_machine(f"http://{host}:8265")

    @pytest.mark.parametrize("host", ["198.51.100.7", "[2001:db8::7]", "no-such-host.invalid"])
    def test_another_machine(self, host: str) -> None:
        assert not is_this_machine(f"http://{host}:8265")


class TestToken:
    def test_one_must_be_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
        with pytest.raises(ClusterError, match="no token is set") as caught:
            require_token("http://198.51.100.7:8265")
        assert "RAY_AUTH_MODE=token" in caught.value.hint
        assert "--allow-no-token" in caught.value.hint

    def test_a_cluster_that_lets_everybody_in(
        self, web_server: Callable[[int, Any], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(ClusterError, match="takes jobs from anybody"):
            require_token(web_server(200, []))

    def test_a_cluster_that_asks_for_one(
        self, web_server: Callable[[int, Any], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        require_token(web_server(401, {}))
        with pytest.raises(ClusterError, match="HTTP 500"):
            require_token(web_server(500, {}))


class TestNoJobServer:
    @pytest.mark.parametrize(("code", "body"), [(404, {}), (200, {}), (200, "hello")])
    def test_another_web_server(self, web_server: Callable[[int, Any], str], code: int, body: Any) -> None:
        with pytest.raises(ClusterError) as caught:
            JobServer(web_server(code, body))
        assert "is no job server" in caught.value.fact

    def test_a_ray_that_is_too_old(self, web_server: Callable[[int, Any], str]) -> None:
        with pytest.raises(ClusterError, match=r"Ray version 1\.2\.0 is running on the cluster"):
            JobServer(web_server(200, {"version": "4", "ray_version": "1.2.0"}))


def _ended(status: str, exit_code: int | None = None, message: str = "") -> Submission:
    return Submission(id="j-1", status=status, notes={}, exit_code=exit_code, message=message, start_ms=0)


class TestResult:
    @pytest.mark.parametrize(
        ("status", "exit_code", "code"),
        [("SUCCEEDED", 0, 0), ("FAILED", 6, 6), ("FAILED", 17, 17), ("FAILED", -9, 137)],
    )
    def test_the_exit_code(self, status: str, exit_code: int, code: int) -> None:
        assert _ended(status, exit_code).result() == code

    def test_a_job_that_was_stopped(self) -> None:
        with pytest.raises(ClusterError, match="j-1 was stopped") as caught:
            _ended("STOPPED").result()
        assert "--resume" in caught.value.hint

    def test_a_job_that_was_lost(self) -> None:
        message = "Traceback (most recent call last):\n  File x\nRuntimeError: the node died\n\n"
        with pytest.raises(ClusterError, match="run to its end: RuntimeError: the node died") as caught:
            _ended("FAILED", None, message).result()
        assert "--resume" in caught.value.hint

    def test_a_node_without_pip(self) -> None:
        message = "FileNotFoundError: [Errno 2] No such file or directory: 'pip'"
        with pytest.raises(ClusterError, match="No such file") as caught:
            _ended("FAILED", None, message).result()
        assert "--no-ship" in caught.value.hint

    def test_a_python_that_is_not_there(self) -> None:
        with pytest.raises(ClusterError, match="does not find the Python") as caught:
            _ended("FAILED", 127).result()
        assert "--python" in caught.value.hint
