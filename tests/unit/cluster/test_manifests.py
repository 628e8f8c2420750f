"""The cluster files agree with Ray's schema, the pins, and the files of this repository."""

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import tomllib
from contextlib import suppress
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


@pytest.fixture(scope="module", params=["ray-cluster.yaml", "ray-cluster-gcp.yaml"])
def launcher(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


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


# --- KubeRay ----------------------------------------------------------------------------

CLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "headServiceAnnotations", "managedBy", "rayVersion",
    "suspend", "workerGroupSpecs",
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts",
    "rayStartParams", "replicas", "scaleStrategy", "suspend", "template",
}  # fmt: skip
HEAD_FIELDS = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint",
    "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy",
    "metadata", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate",
    "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
"""Fields of KubeRay's v1 resources, from its API reference: an unknown one is dropped unsaid."""


def test_kuberay_fields_are_those_that_it_publishes(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert set(job["spec"]) <= JOB_FIELDS
    assert set(cluster) <= CLUSTER_FIELDS
    assert set(cluster["headGroupSpec"]) <= HEAD_FIELDS
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS


def test_the_cluster_that_stays_is_the_jobs(job: dict[str, Any]) -> None:
    cluster = load("kuberay-raycluster.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]


# --- image ------------------------------------------------------------------------------


def test_pods_run_as_the_images_user_who_is_not_root(job: dict[str, Any]) -> None:
    text = (ROOT / "cluster/Dockerfile").read_text("utf-8")
    (uid,) = re.findall(r"useradd .*--uid (\d+) safemerge", text)
    assert "\nUSER safemerge\n" in text
    for pod in pod_specs(job):
        user = {"runAsNonRoot": True, "runAsUser": int(uid), "fsGroup": int(uid)}
        assert pod["securityContext"] == user
        for container in pod["containers"]:
            assert f"\nWORKDIR {container['workingDir']}\n" in text
    assert f"-t {pod_specs(job)[0]['containers'][0]['image']} ." in text


def test_the_image_is_built_without_environments_runs_and_keys() -> None:
    left_out = set((ROOT / ".dockerignore").read_text("utf-8").splitlines())
    assert {".git", ".venv", "results", "**/auth_token", "**/.env"} <= left_out
    needed = {"Makefile", "constraints", "safemerge", "search_spaces", "pyproject.toml"}
    assert not left_out & needed
    extras = PROJECT["optional-dependencies"]
    (s3fs,) = extras["s3"]
    assert f" {s3fs}\n" in (ROOT / "cluster/Dockerfile").read_text("utf-8")


# --- SLURM ------------------------------------------------------------------------------

STANDINS = {
    "scontrol": '[ "$1" = show ] && printf "n1\\nn2\\nn3\\n"; echo "scontrol $*" >> "$CALLS"; '
    "true",
    "srun": 'case "$*" in *hostname*) echo 10.0.0.1 ;; *) echo "srun $*" >> "$CALLS"; '
    "exec sleep 60 ;; esac",
    "ray": "true",
    # Ends after both steps of Ray have begun, as a search would.
    "safemerge": 'until [ "$(grep -c ^srun "$CALLS")" = 2 ]; do sleep 0.05; done; '
    'echo "safemerge $* at $RAY_ADDRESS" >> "$CALLS"; '
    'trap "exit 143" TERM; echo up; [ -n "${CODE:-}" ] && exit "$CODE"; sleep 60 & wait $!',
}


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    """Start the batch script with stand-ins for the commands of SLURM, Ray and safemerge."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in STANDINS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n", "utf-8")
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    started = []

    def start(*arguments: str, **more: str) -> tuple[subprocess.Popen[str], Path]:
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "CALLS": str(calls),
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "RAY_AUTH_TOKEN": "of-a-test",
        } | more
        script = str(ROOT / "cluster/slurm.sh")
        started.append(
            subprocess.Popen(
                ["bash", script, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                start_new_session=True,
            )
        )
        return started[-1], calls

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_slurm_starts_a_head_a_worker_on_each_other_node_and_a_search_that_resumes(
    batch: Any,
) -> None:
    process, calls = batch("mine.yaml", "/shared/my runs", CODE="1")
    assert process.wait(60) == 1, "the search's own code"
    told = calls.read_text("utf-8")
    assert "--nodelist=n1 ray start --head --block --node-ip-address=10.0.0.1 --port=20123" in told
    assert re.search(
        r"--nodes=2 --ntasks=2 --exclude=n1 .*ray start --address=10.0.0.1:20123", told
    )
    assert "safemerge search mine.yaml --results /shared/my runs --resume at 10.0.0.1:20" in told
    assert "requeue" not in told


def test_slurm_queues_a_job_again_that_sigterm_ended(batch: Any) -> None:
    process, calls = batch("mine.yaml", "s3://bucket/runs")
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    assert process.wait(60) == 143
    assert calls.read_text("utf-8").endswith("scontrol requeue 123\n")


def test_slurm_refuses_to_start_an_open_cluster(batch: Any) -> None:
    process, calls = batch("mine.yaml", "results", RAY_AUTH_TOKEN="")
    assert process.wait(60) == 2
    assert process.stdout is not None
    assert "needs Ray's token; got no file" in process.stdout.read()
    assert calls.read_text("utf-8") == ""
