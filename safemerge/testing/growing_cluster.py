"""A Ray cluster on one machine whose nodes come and go: Ray's autoscaler over made-up nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HEAD = "ray.head.default"
WORKER = "worker"

OBJECT_STORE_BYTES = 100 * 1024**2
"""Of each node; the least that Ray takes is 75 MiB."""

STARTED_WITHIN_S = 180.0


def autoscaler_config(
    *, port: int, max_workers: int, cpus: int, idle_s: float, head_memory: int
) -> dict[str, Any]:
    """Return a cluster's configuration with each key that the autoscaler reads.

    Its provider starts a raylet on this machine for each node; Ray's own template of it is not in
    the wheel.

    Args:
        port: Of the head.
        max_workers: Most nodes beside the head.
        cpus: Of each of them, as Ray counts; the head has none.
        idle_s: How long an unused node is kept.
        head_memory: Memory that the head lets Ray give away, in bytes.
    """
    return {
        "cluster_name": "growing",
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0, "memory": head_memory}, "node_config": {}},
            WORKER: {
                "resources": {"CPU": cpus, "object_store_memory": OBJECT_STORE_BYTES},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_workers,
            },
        },
        "head_node_type": HEAD,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@contextmanager
def growing_cluster(
    *, max_workers: int, cpus: int = 1, idle_s: float = 10.0, head_memory: int = 4 * 1024**3
) -> Iterator[str]:
    """Run a head without CPUs that adds nodes for what waits and removes idle ones.

    Its processes, nodes included, end with the block. It is guarded by the token that this
    process has: set ``RAY_AUTH_MODE`` and ``RAY_AUTH_TOKEN`` before Ray is imported.

    Args:
        max_workers: Most nodes beside the head.
        cpus: CPUs of each.
        idle_s: How long an unused node is kept.
        head_memory: Memory that the head lets Ray give away, in bytes.

    Yields:
        The head's address, for ``RAY_ADDRESS``.

    Raises:
        RuntimeError: If the head does not come up.
    """
    port = _free_port()
    config = autoscaler_config(
        port=port, max_workers=max_workers, cpus=cpus, idle_s=idle_s, head_memory=head_memory
    )
    with tempfile.TemporaryDirectory(prefix="growing-") as folder:
        path = Path(folder) / "cluster.json"  # JSON is YAML
        path.write_text(json.dumps(config), encoding="utf-8")
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"),
            *(f"--autoscaling-config={path}", "--node-ip-address=127.0.0.1", f"--port={port}"),
            *("--num-cpus=0", f"--memory={head_memory}", "--include-dashboard=false"),
            *(f"--temp-dir={folder}/ray", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            "--disable-usage-stats",
        ]
        with (Path(folder) / "output.txt").open("wb") as output:
            head = subprocess.Popen(
                command,
                env={**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait_for(port, head, Path(folder) / "output.txt")
            yield f"127.0.0.1:{port}"
        finally:
            _end(head)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, head: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while head.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.5)
    raise RuntimeError(f"growing cluster: the head must come up; got: {output.read_text()[-500:]}")


def _end(head: subprocess.Popen[bytes]) -> None:
    """End a head and what it started: nodes are children of its autoscaler."""
    import psutil

    processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=10)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()
