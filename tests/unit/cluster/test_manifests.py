"""The cluster files agree with Ray's schema, the pins, and the files of this repository."""

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import safemerge

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / name).read_text("utf-8"))


def pinned(package: str, device: str) -> str:
    pins = (ROOT / "constraints" / f"{device}.txt").read_text("utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)", pins, re.MULTILINE)
    assert found, f"constraints/{device}.txt does not pin {package}"
    return found.group(1)


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return load("ray-cluster.yaml")


@pytest.fixture(scope="module")
def launcher_schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")  # finds the folder without importing ray
    if spec is None or spec.origin is None:
        pytest.skip("ray is not installed")
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return load("kuberay-rayjob.yaml")


def pod_specs(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_launcher_file_satisfies_the_schema_of_the_installed_ray(
    launcher: dict[str, Any], launcher_schema: dict[str, Any]
) -> None:
    jsonschema.validate(launcher, launcher_schema)


def test_schema_refuses_an_unknown_key(
    launcher: dict[str, Any], launcher_schema: dict[str, Any]
) -> None:
    unknown = {**launcher, "idle_minutes": 5}
    with pytest.raises(jsonschema.ValidationError, match="idle_minutes"):
        jsonschema.validate(unknown, launcher_schema)


def test_launcher_workers_are_gpu_nodes_that_scale_from_zero(launcher: dict[str, Any]) -> None:
    types = dict(launcher["available_node_types"])
    head = types.pop(launcher["head_node_type"])
    assert head["resources"]["GPU"] == 0
    assert head["max_workers"] == 0
    assert sum(worker["max_workers"] for worker in types.values()) <= launcher["max_workers"]
    for worker in types.values():
        assert worker["resources"]["GPU"] > 0
        assert worker["min_workers"] == 0


def test_launcher_copies_files_that_exist_and_all_that_the_build_reads(
    launcher: dict[str, Any],
) -> None:
    local = {source for source in launcher["file_mounts"].values() if source[0] != "~"}
    assert [source for source in sorted(local) if not (ROOT / source).exists()] == []
    build = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "Makefile"}
    assert build <= local


def test_launcher_folder_is_the_same_in_copies_and_commands(launcher: dict[str, Any]) -> None:
    folder = next(
        str(Path(remote).parent)
        for remote, source in launcher["file_mounts"].items()
        if source == "Makefile"
    )
    commands = [
        *launcher["setup_commands"],
        *launcher["head_setup_commands"],
        *launcher["head_start_ray_commands"],
        *launcher["worker_start_ray_commands"],
    ]
    assert any(f"cd {folder} && make setup DEVICE=gpu" in command for command in commands)
    used = {found for command in commands for found in re.findall(r"[^\s=:]+(?=/\.venv)", command)}
    assert used == {folder}


@pytest.mark.parametrize("role", ["head", "worker"])
def test_launcher_starts_ray_only_with_the_token(launcher: dict[str, Any], role: str) -> None:
    assert "~/.ray/auth_token" in launcher["file_mounts"].values()
    starts = [c for c in launcher[f"{role}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 1
    assert "RAY_AUTH_MODE=token" in starts[0].split("ray start")[0]


def test_job_is_a_rayjob_with_token_and_autoscaling(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert job["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_job_runs_the_pinned_ray(job: dict[str, Any], device: str) -> None:
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned("ray", device)


def test_job_entrypoint_names_a_command_and_a_study_of_this_repository(
    job: dict[str, Any],
) -> None:
    program, command, study, *options = shlex.split(job["spec"]["entrypoint"])
    assert program in PROJECT["scripts"]
    assert command == "search"
    assert (ROOT / study).is_file()
    mounts = {m["mountPath"] for m in pod_specs(job)[0]["containers"][0]["volumeMounts"]}
    results = Path(options[options.index("--results") + 1])
    assert any(results.is_relative_to(mount) for mount in mounts), "results must be shared"


def test_job_workers_are_gpu_pods_that_scale_from_zero(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 8)
        for container in group["template"]["spec"]["containers"]:
            assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1


def test_job_pods_share_one_image_of_this_version(job: dict[str, Any]) -> None:
    containers = [container for pod in pod_specs(job) for container in pod["containers"]]
    assert {container["image"] for container in containers} == {
        f"safemerge:{safemerge.__version__}-gpu"
    }
    assert len({container["workingDir"] for container in containers}) == 1


def test_job_mounts_only_volumes_it_declares(job: dict[str, Any]) -> None:
    for pod in pod_specs(job):
        declared = {volume["name"] for volume in pod["volumes"]}
        mounted = {m["name"] for c in pod["containers"] for m in c["volumeMounts"]}
        assert mounted == declared


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_exact_requirements_of_the_extras_are_the_pinned_versions(device: str) -> None:
    extras = PROJECT["optional-dependencies"]
    exact = [r.split(";")[0].strip() for r in extras["runtime"] + extras[device] if "==" in r]
    for requirement in exact:
        name, version = re.sub(r"\[.*\]", "", requirement).split("==")
        assert pinned(name, device) == version
