"""Joining or starting Ray, and leaving it, without a cluster."""

import os
import signal
import socket
import subprocess
import sys
from concurrent import futures

import grpc
import psutil
import pytest
import ray
from ray._private import ray_constants, services

from safemerge.distributed import cluster
from safemerge.distributed.cluster import ray_cluster
from safemerge.errors import PreflightError
from safemerge.interrupt import Terminated, terminable


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return monkeypatch


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "local Ray must answer; got: too slow. Try again"),
        ("10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379 must answer; got: too slow. Start the"),
    ],
)
@pytest.mark.parametrize("kind", [ConnectionError, Exception])
def test_a_cluster_that_does_not_answer_is_told_in_one_line(no_ray, address, told, kind):
    if address is not None:
        no_ray.setenv("RAY_ADDRESS", address)

    def fail(**_):
        raise kind("too slow.\nmore")

    no_ray.setattr(ray, "init", fail)
    no_ray.setattr(cluster, "_check_answers", lambda _: None)
    with pytest.raises(PreflightError, match=told) as caught, ray_cluster():
        pass
    assert "\n" not in str(caught.value)


def test_a_local_cluster_that_starts_too_slowly_is_started_once_more(no_ray):
    left_behind = []

    def too_slow_once(**_):
        if not left_behind:
            left_behind.append(subprocess.Popen(["sleep", "60"]))
            raise Exception("The current node timed out during startup.")

    no_ray.setattr(ray, "init", too_slow_once)
    mine = subprocess.Popen(["sleep", "60"])
    with ray_cluster():
        assert left_behind[0].wait(timeout=10) == -signal.SIGKILL
        assert mine.poll() is None
    mine.kill()
    mine.wait()


def test_a_port_of_something_else_is_told_and_not_waited_for(no_ray):
    no_ray.setattr(cluster, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        no_ray.setenv("RAY_ADDRESS", address)
        told = f"RAY_ADDRESS={address} must answer; got: no Ray cluster there within 0.5 s"
        with pytest.raises(PreflightError, match=told), ray_cluster():
            pass


def test_a_port_that_answers_is_joined(no_ray):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    no_ray.setenv("http_proxy", "http://127.0.0.1:9")  # for the web, not for a cluster
    no_ray.delenv("no_proxy", raising=False)
    joined = []
    no_ray.setattr(ray, "init", lambda **_: joined.append(True))
    with ray_cluster():
        pass
    server.stop(None)
    assert joined == [True]


@pytest.fixture
def guarded_head(no_ray, tmp_path):
    """A head that wants the token ``right``, as Ray's does; yields its address."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        no_ray.delenv(name, raising=False)
    no_ray.setenv("HOME", str(tmp_path))

    def cluster_id(_, context):
        if ("authorization", "Bearer right") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    handlers = {"GetClusterId": grpc.unary_unary_rpc_method_handler(cluster_id)}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    no_ray.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("mode", "token", "told"),
    [
        (None, None, "got RAY_AUTH_MODE unset. Set RAY_AUTH_MODE=token"),
        ("disabled", "right", "got RAY_AUTH_MODE=disabled. Set RAY_AUTH_MODE=token"),
        ("token", None, "got none. Set RAY_AUTH_MODE=token, and copy the cluster's token"),
        ("token", "wrong", "got another one, of RAY_AUTH_TOKEN. Copy the cluster's there."),
    ],
)
def test_a_cluster_that_wants_a_token_says_what_is_lacking(
    guarded_head, no_ray, mode, token, told
):
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        if value is not None:
            no_ray.setenv(name, value)
    told = f"cluster: RAY_ADDRESS={guarded_head} wants its token; {told}"
    with pytest.raises(PreflightError, match=told), ray_cluster():
        pass


@pytest.mark.parametrize("place", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "default"])
def test_a_cluster_is_joined_with_its_token(guarded_head, no_ray, tmp_path, place):
    no_ray.setenv("RAY_AUTH_MODE", "token")
    file = tmp_path / (".ray/auth_token" if place == "default" else "token")
    if place == "RAY_AUTH_TOKEN":
        no_ray.setenv(place, "right")
    else:
        file.parent.mkdir(exist_ok=True)
        file.touch(0o600)
        file.write_text("right\n")
    if place == "RAY_AUTH_TOKEN_PATH":
        no_ray.setenv(place, str(file))
    joined = []
    no_ray.setattr(ray, "init", lambda **_: joined.append(guarded_head))
    with ray_cluster():
        pass
    assert joined == [guarded_head]


def test_a_local_cluster_is_started_on_loopback_and_nothing_of_it_stays(no_ray):
    name, seen = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, []
    no_ray.delenv(name, raising=False)
    before = ray_constants.ENABLE_RAY_CLUSTER
    no_ray.setattr(
        ray, "init", lambda **_: seen.append((os.environ[name], services.get_node_ip_address()))
    )
    with ray_cluster():
        pass
    assert seen == [("0", "127.0.0.1")]
    assert name not in os.environ
    assert ray_constants.ENABLE_RAY_CLUSTER is before


@pytest.mark.parametrize("address", ["auto", "ray://10.0.0.1:10001"])
def test_addresses_of_other_kinds_are_left_to_ray(no_ray, address):
    no_ray.setattr(cluster, "ANSWER_S", 0.1)
    no_ray.setenv("RAY_ADDRESS", address)
    with ray_cluster():
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_ends_leaves_no_process_behind(no_ray, number):
    ended = []

    def end():
        signal.raise_signal(number)
        ended.append(True)

    no_ray.setattr(ray, "shutdown", end)
    handler = signal.getsignal(number)
    with ray_cluster():
        pass
    assert ended == [True]
    assert signal.getsignal(number) is handler


def test_sigterm_interrupts_a_command_though_ray_sets_a_handler_of_its_own(no_ray):
    handlers = []

    def init(**_):
        handlers.append(signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler")))

    no_ray.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable(), ray_cluster():
        signal.raise_signal(signal.SIGTERM)
    assert len(handlers) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interrupted_block_ends_the_cluster(no_ray):
    ended = []
    no_ray.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(KeyboardInterrupt), ray_cluster():
        raise KeyboardInterrupt
    assert ended == [True]


_WATCHING = """
import os, signal, subprocess, sys, time
from safemerge.distributed import cluster
vital = subprocess.Popen(["sleep", "60"])
other = subprocess.Popen(["sleep", "60"])
print(other.pid, flush=True)
with cluster._watched({"raylet": vital.pid, "monitor": other.pid}):
    if sys.argv[1] == "killed":
        os.kill(vital.pid, signal.SIGKILL)
        time.sleep(30)
vital.kill(), other.kill()
time.sleep(2 * cluster.WATCH_EVERY_S)
print("whole")
"""


def watching(how):
    return subprocess.run(
        [sys.executable, "-c", _WATCHING, how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_local_cluster_that_lost_a_vital_process_ends_the_command_with_one_message():
    done = watching("killed")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "its process 'raylet' was killed" in done.stderr
    assert "--resume" in done.stderr
    other = int(done.stdout)
    assert not psutil.pid_exists(other) or psutil.Process(other).status() == "zombie"


def test_a_lost_cluster_ends_the_command_though_its_output_is_closed():
    command = [sys.executable, "-c", _WATCHING, "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 1


def test_a_vital_process_that_ends_after_the_block_is_no_loss():
    done = watching("after")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("whole\n")
