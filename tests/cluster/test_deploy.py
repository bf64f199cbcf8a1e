"""The files of ``cluster/deploy``: what can be known of them without a cluster, a cloud or a GPU."""

from __future__ import annotations

import copy
import fnmatch
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from referencing import Registry, Resource
from trtfleet.cluster.metrics import JobMetrics
from trtfleet.jobs.spec import ScoreSpec, load_spec

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "cluster" / "deploy"
SCHEMAS = {
    path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("deploy_schemas/*.json")
}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
KUBERNETES = ("1.31", "1.37")
MANIFESTS = ("rayjob", "raycluster")
FLAVOURS = ("cpu", "tensorrt")


def documents(manifest: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / f"{manifest}.yaml").read_text()))


def resource(manifest: str) -> dict[str, Any]:
    """The manifest's document of KubeRay's."""
    (found,) = (document for document in documents(manifest) if document["apiVersion"] == "ray.io/v1")
    return found


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(manifest: str) -> Iterator[dict[str, Any]]:
    cluster = cluster_of(resource(manifest))
    yield cluster["headGroupSpec"]
    yield from cluster["workerGroupSpecs"]


def pods(manifest: str) -> Iterator[dict[str, Any]]:
    for group in groups(manifest):
        yield {"apiVersion": "v1", "kind": "Pod", **group["template"]}


def containers(manifest: str) -> Iterator[dict[str, Any]]:
    for pod in pods(manifest):
        yield from pod["spec"]["containers"]


def check_ray(document: dict[str, Any]) -> None:
    """Raises ValidationError unless KubeRay knows every field."""
    registry: Registry[Any] = Registry().with_resources(
        (f"{name}.json", Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
    )
    schema = SCHEMAS[document["kind"].lower()]
    jsonschema.Draft202012Validator(schema, registry=registry).validate(document)


def dockerfile(flavour: str) -> list[tuple[str, str]]:
    """Instructions and what follows them, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / f"{flavour}.Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def said(flavour: str, instruction: str) -> list[str]:
    return [rest for name, rest in dockerfile(flavour) if name == instruction]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kuberay_knows_every_field(manifest: str) -> None:
    check_ray(resource(manifest))


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_kubernetes_knows_every_field_of_what_is_its_own(manifest: str, version: str) -> None:
    own = [document for document in documents(manifest) if document["apiVersion"] == "v1"]
    for document in [*own, *pods(manifest)]:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backOffLimit"), 3),
        (("spec", "backoffLimit"), "3"),
        (("spec", "shutdownAfterJobFinishes"), False),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "password"),
        (("metadata", "name"), "j" * 48),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_field_that_kuberay_would_refuse_is_noticed(path: tuple[str, ...], value: Any) -> None:
    document = copy.deepcopy(resource("rayjob"))
    place = document
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_ray(document)


def test_a_field_that_kubernetes_would_refuse_is_noticed() -> None:
    pod = copy.deepcopy(next(pods("rayjob")))
    pod["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES[0], strict=True)


def test_the_job_is_one_that_score_accepts(tmp_path: Path) -> None:
    (job,) = (document for document in documents("rayjob") if document["kind"] == "ConfigMap")
    path = tmp_path / "job.yaml"
    path.write_text(job["data"]["job.yaml"])
    spec = ScoreSpec.of({name.replace("-", "_"): value for name, value in load_spec(str(path)).items()})
    assert (spec.precision, spec.resize, spec.max_bad_rows) == ("fp16", (224, 224), 100)


def test_the_job_reads_what_is_mounted_on_the_head() -> None:
    document = resource("rayjob")
    (job,) = (found for found in documents("rayjob") if found["kind"] == "ConfigMap")
    command, subcommand, option, path = shlex.split(document["spec"]["entrypoint"])
    assert (command, subcommand, option) == ("trtfleet", "score", "--spec")
    pod = next(pods("rayjob"))["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
    folder, _, name = path.rpartition("/")
    assert mounts[folder]["configMap"]["name"] == job["metadata"]["name"]
    assert name in job["data"]
    assert yaml.safe_load(job["data"][name])["model"].rpartition("/")[0] in mounts


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_pods_run_without_root_as_the_user_of_the_image(manifest: str) -> None:
    (user,) = said("cpu", "USER")
    assert said("tensorrt", "USER") == [user]
    for pod in pods(manifest):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
    for container in containers(manifest):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_clusters_ask_for_a_token_and_leave_the_head_to_the_driver(manifest: str) -> None:
    assert cluster_of(resource(manifest))["authOptions"] == {"mode": "token"}
    assert next(groups(manifest))["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_clusters_are_fixed_in_size(manifest: str) -> None:
    for group in list(groups(manifest))[1:]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]


def test_all_files_name_one_version_of_ray_and_of_trtfleet() -> None:
    (ray,) = (text for text in PROJECT["project"]["dependencies"] if text.startswith("ray["))
    least = tuple(map(int, ray.partition(">=")[2].split(".")))
    versions = {cluster_of(resource(manifest))["rayVersion"] for manifest in MANIFESTS}
    versions |= {argument.partition("=")[2] for flavour in FLAVOURS for argument in said(flavour, "ARG")}
    (version,) = versions
    assert tuple(map(int, version.split(".")))[: len(least)] >= least
    images = {container["image"] for manifest in MANIFESTS for container in containers(manifest)}
    images.add(yaml.safe_load((DEPLOY / "ray-up-aws.yaml").read_text())["docker"]["image"])
    assert images == {f"trtfleet:{PROJECT['project']['version']}-{flavour}" for flavour in FLAVOURS}


def test_ray_accepts_the_file_for_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray-up-aws.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    config["available_node_types"]["gpu"]["max_worker"] = 4
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_ray_up_starts_nodes_that_ask_for_a_token() -> None:
    config = yaml.safe_load((DEPLOY / "ray-up-aws.yaml").read_text())
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "export RAY_AUTH_MODE=token" in commands[-1]
    assert "~/.ray/auth_token" in config["file_mounts"]
    nodes = config["available_node_types"].values()
    assert all(node["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for node in nodes)


def test_ray_start_knows_every_option_that_the_files_give_it() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    config = yaml.safe_load((DEPLOY / "ray-up-aws.yaml").read_text())
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    used = {found for command in commands for found in re.findall(r"--[a-z-]+", command)}
    used |= {
        f"--{name}"
        for manifest in MANIFESTS
        for group in groups(manifest)
        for name in group["rayStartParams"]
    }
    assert {"--head", "--address", "--num-cpus"} <= used
    assert used - known == set()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_linter_for_dockerfiles_has_nothing_to_say(flavour: str) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    command = [str(linter), "--no-color", str(DEPLOY / f"{flavour}.Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_base_images_are_pinned_and_the_last_user_is_not_root(flavour: str) -> None:
    bases = [base.split()[0] for base in said(flavour, "FROM")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[\w.-]+", base) for base in bases), bases
    assert all(int(number) > 0 for number in said(flavour, "USER")[-1].split(":"))
    (health,) = said(flavour, "HEALTHCHECK")
    assert json.loads(health.partition("CMD ")[2]) == ["trtfleet", "doctor"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_ray_is_found_in_login_shells_and_probes_find_wget(flavour: str) -> None:
    last = said(flavour, "RUN")[-1]
    assert "/etc/profile.d/trtfleet.sh" in last
    assert re.search(r"apt-get install [^&]*\bwget\b", last)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_image_holds_every_file_of_the_package_and_no_other(flavour: str) -> None:
    copied = [shlex.split(rest)[:-1] for rest in said(flavour, "COPY") if "--from" not in rest]
    sources = list(itertools.chain.from_iterable(copied))
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []
    rules = (DEPLOY / f"{flavour}.Dockerfile.dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if not rule.startswith("#")]
    taken = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert taken == {source.rstrip("/") for source in sources}
    assert [rule for rule in rules if not rule.startswith("!")] == ["*", "cluster/deploy", "**/__pycache__"]
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        folder = "/".join(package.split(".")[1:])
        assert not folder or f"{folder.split('/')[0]}/" in sources
    roots = {path.name for pattern in ("*.py", "py.typed") for path in REPOSITORY.glob(pattern)}
    metadata = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"}
    assert {source for source in sources if not source.endswith("/")} == roots | metadata


@pytest.mark.parametrize(
    ("flavour", "extras", "runtime"),
    [("cpu", (), "onnxruntime"), ("tensorrt", ("gpu", "jpeg"), "onnxruntime-gpu")],
)
def test_an_image_installs_what_the_project_depends_on(
    flavour: str, extras: tuple[str, ...], runtime: str
) -> None:
    (line,) = (rest for rest in said(flavour, "RUN") if "tomllib" in rest)
    source = shlex.split(line)[2]
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *itertools.chain.from_iterable(optional[x] for x in extras),
    ]
    wanted = [text.replace("onnxruntime>=", f"{runtime}>=") for text in wanted]
    assert done.stdout.splitlines() == wanted
    assert any(text.startswith(f"{runtime}>=") for text in wanted)


def test_no_file_holds_a_secret() -> None:
    assignment = re.compile(r"(?i)(secret|token|password|access_key\w*)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{12,}")
    assert assignment.search("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCY")
    files = [path for path in DEPLOY.iterdir() if path.is_file()]
    assert len(files) >= 9
    assert [path.name for path in files if assignment.search(path.read_text())] == []


def exported_metrics() -> set[str]:
    """The metrics of a job under the names that Ray exports them with."""
    members = vars(JobMetrics("x")).values()
    return {f"ray_{metric.info['name']}" for metric in members if hasattr(metric, "info")}


@pytest.fixture
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    return loaded


class TestDashboard:
    def test_shows_every_metric_and_no_other(self, dashboard: dict[str, Any]) -> None:
        assert "ray_trtfleet_rows_total" in exported_metrics()
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        shown = {name for text in expressions for name in re.findall(r"\bray_\w+", text)}
        assert shown == exported_metrics()

    def test_the_documentation_names_every_metric(self) -> None:
        text = (REPOSITORY / "docs" / "metrics.md").read_text()
        assert {name for name in exported_metrics() if f"`{name}`" not in text} == set()

    def test_uses_only_variables_that_it_has(self, dashboard: dict[str, Any]) -> None:
        has = {variable["name"] for variable in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
        assert used - has == {"__range", "__rate_interval", "__all"}
        assert has <= used

    def test_counters_are_read_as_rates_or_totals(self, dashboard: dict[str, Any]) -> None:
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                counters = re.findall(r"(\w+)\((ray_\w+_total)\{", target["expr"])
                assert len(counters) == len(re.findall(r"ray_\w+_total", target["expr"]))
                assert {function for function, _ in counters} <= {"rate", "max_over_time"}
                assert target["expr"].count("(") == target["expr"].count(")")

    def test_panels_fill_a_grid_without_overlap(self, dashboard: dict[str, Any]) -> None:
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        cells: set[tuple[int, int]] = set()
        for place in (panel["gridPos"] for panel in panels):
            own = set(
                itertools.product(
                    range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
                )
            )
            assert not own & cells
            cells |= own
        assert max(x for x, _ in cells) == 23
        assert len(cells) == 24 * (1 + max(y for _, y in cells))


def test_the_wheel_leaves_the_folder_out() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    assert not any(package.startswith("trtfleet.cluster.") for package in setuptools["packages"])
    patterns = setuptools["package-data"].get("trtfleet.cluster", [])
    assert not any(fnmatch.fnmatch("deploy/rayjob.yaml", pattern) for pattern in patterns)
    assert not list(DEPLOY.rglob("*.py"))
