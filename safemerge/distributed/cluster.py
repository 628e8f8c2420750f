"""Joining a running Ray cluster, or starting a local one that ends with the command."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from safemerge.config.extra import RUNTIME
from safemerge.distributed.token import find_token, secure_token
from safemerge.errors import PreflightError
from safemerge.interrupt import kept_sigterm, uninterrupted
from safemerge.scratch import owned, remove_abandoned, remove_marked

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 200 * 1024**2
"""Object store of a local cluster: only recipes and results travel, never weights."""

START_TRIES = 2
"""How often a local cluster is started before its failure is reported."""

VITAL = ("gcs_server", "raylet")
"""Processes of a local cluster without which it is lost, by Ray's names."""

WATCH_EVERY_S = 0.5

ANSWER_S = 20.0
"""How long a named cluster may take to answer."""


@contextmanager
def ray_cluster(*, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the length of a block.

    Joins the cluster that ``RAY_ADDRESS`` names (as inside ``ray job submit``), else starts a
    local one. What this call started, it stops; a cluster that ran before is left running.

    Args:
        num_cpus: CPUs of a local cluster; all of them if left out.

    Raises:
        PreflightError: If Ray is not installed, or the named cluster does not answer.
    """
    for name in ("ray", "ray.serve", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import ray
    except ImportError as error:
        raise PreflightError(f"cluster: ray must be installed; got: {error}. {RUNTIME}") from None
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    secure_token(make=not address)
    try:
        with kept_sigterm():
            if address:
                _check_answers(address)
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            else:
                # No machine of a local cluster is ever drained: one process less for each stage.
                os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
                # A replica that is scaled down may take as long as its candidate; a hung one not.
                os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
                _start_local(num_cpus)
    except PreflightError:
        raise
    except Exception as error:  # noqa: BLE001
        # A border: Ray raises a bare Exception where its processes start too slowly.
        where = f"RAY_ADDRESS={address}" if address else "local Ray"
        advice = "Start the cluster, or unset RAY_ADDRESS to run on this machine alone."
        if not address:
            advice = "Try again when fewer programs hold the machine's cores and memory."
        reason = (str(error) or repr(error)).splitlines()[0].rstrip(".")
        raise PreflightError(f"cluster: {where} must answer; got: {reason}. {advice}") from None
    with _ray_errors_logged(), nullcontext() if address else _own_session():
        try:
            with nullcontext() if address else _watched(_ray_processes()):
                yield
        finally:
            # Serve's handles go on reporting from a thread, and would complain of the lost
            # cluster.
            # NOTE: no serve.shutdown(): it ends the controller under those handles, which
            # complain.
            logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
            with uninterrupted():
                ray.shutdown()


@contextmanager
def _own_session() -> Iterator[None]:
    """Remove the folder of a local cluster's session after the cluster has ended.

    Ray keeps every one. After an error it stays, for Ray's logs, until another one starts.
    """
    from ray._private import worker

    node = worker._global_node
    if node is None:
        yield
        return
    folder = Path(node.get_session_dir_path())
    remove_abandoned(folder.parent, "session_")
    failed = False
    with owned(folder):
        try:
            yield
        except Exception:
            failed = True
            raise
        finally:
            if not failed:
                remove_marked(folder)


@contextmanager
def _ray_errors_logged() -> Iterator[None]:
    """Log what Ray's processes complain of, instead of printing it whatever the log level.

    A worker that died is no news to a user whose candidate was tried again, and a raylet's end is
    twenty lines of its state. ``--verbose`` shows them.
    """
    from ray._private import worker

    before = worker.print_to_stdstream

    def log(data: dict[str, Any], **_: object) -> None:
        logger.info("%s: %s", data.get("pid", "ray"), "\n".join(data.get("lines", ())))

    worker.print_to_stdstream = log
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _ray_processes() -> dict[str, int]:
    """Return the processes of a local cluster by Ray's names; a raylet's children are workers."""
    from ray._private import worker

    started = {} if worker._global_node is None else worker._global_node.all_processes
    return {kind: found[0].process.pid for kind, found in started.items() if found}


@contextmanager
def _watched(processes: Mapping[str, int]) -> Iterator[None]:
    """End this process, with one message, when a process that Ray cannot lose is lost.

    Ray itself ends it without a word of ours, seconds or a minute later, after pages of dumps. Its
    state is on disk at any moment, as for a kill.

    Args:
        processes: Ids of the cluster's processes, children of this one, by Ray's names.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_EVERY_S):
            for kind in VITAL:
                if kind in processes and not over.is_set() and not _lives(processes[kind]):
                    _end_without(kind, processes)

    thread = threading.Thread(target=watch, name="safemerge-cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _lives(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _end_without(kind: str, processes: Mapping[str, int]) -> NoReturn:
    import psutil

    try:
        # What is left of the cluster would wait for it, and complain on this terminal.
        for pid in processes.values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                for left in (*process.children(recursive=True), process):
                    left.kill()
        sys.stderr.write(
            f"safemerge: local Ray: its process '{kind}' was killed (out of memory?). Finished "
            "work is kept: run the same command again, with --resume where it has that option.\n"
        )
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        os._exit(1)  # also where nobody reads the output any more


def _start_local(num_cpus: int | None) -> None:
    """Start a local cluster; where its processes start too slowly, once more.

    Ray gives them 30 seconds, which busy cores may need for loading alone; the second time they
    are in memory.
    """
    import psutil
    import ray

    for tries_left in reversed(range(START_TRIES)):
        others = psutil.Process().children(recursive=True)
        try:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception:
            # A border: Ray raises a bare Exception, and leaves what it started.
            ray.shutdown()
            started = set(psutil.Process().children(recursive=True)) - set(others)
            for process in started:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if not tries_left:
                raise
        else:
            return


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let what Ray starts in a block listen to this machine alone, as it does on macOS.

    By itself it takes the machine's address, and every interface, also where an address of
    127.0.0.1 is asked for. Its processes take the setting from the environment.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    given, before = os.environ.get(name), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given


def _check_answers(address: str) -> None:
    """Refuse a port where no Ray cluster listens: Ray itself would try for minutes.

    Raises:
        ConnectionError: If nothing that speaks gRPC, as a cluster's head does, answers in time.
        PreflightError: If it wants a token, and this process has not the right one.
    """
    host, _, port = address.rpartition(":")
    is_plain = bool(host) and port.isdigit() and "://" not in address
    if not is_plain or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # "auto", a client's address, or a cluster that answers to its own keys only
    import grpc

    # No proxy in between, as Ray has none.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"no Ray cluster there within {ANSWER_S:g} s") from None
        _check_token(channel, address)


def _check_token(channel: Any, address: str) -> None:
    """Ask the head for its cluster's id, as Ray does first of all."""
    import grpc

    mode = os.environ.get("RAY_AUTH_MODE")
    found = find_token() if (mode or "").lower() == "token" else None
    sent = [] if found is None else [("authorization", f"Bearer {found.token}")]
    try:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(
            b"", metadata=sent, timeout=ANSWER_S
        )
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            return  # Ray says what is wrong
        if found is not None:
            got, advice = f"another one, of {found.place}", "Copy the cluster's there."
        else:
            got = f"RAY_AUTH_MODE={mode}" if mode is not None else "RAY_AUTH_MODE unset"
            if (mode or "").lower() == "token":
                got = "none"
            advice = (
                "Set RAY_AUTH_MODE=token, and copy the cluster's token to ~/.ray/auth_token or to "
                "a file that RAY_AUTH_TOKEN_PATH names."
            )
        raise PreflightError(
            f"cluster: RAY_ADDRESS={address} wants its token; got {got}. {advice}"
        ) from None
