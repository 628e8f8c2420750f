"""How fast merges are: against a plain copy in memory, and against mergekit, in one run.

memory: GB/s of each method, inputs mapped and outputs reused, against a copy of as many bytes by
        the same threads (the limit);
watch:  seconds of a merge in memory whose files are watched, against one whose are not;
warm:   seconds of a merge in memory, against mergekit's on the same tensors;
disk:   wall time and peak memory of the whole commands on the same recipe file;
gpu:    GB/s of an 8B-shaped three-way merge on the device, where there is one.

    make bench-peers
    .venv/bin/python benchmarks/merge_speed.py [--shape smollm2-135m] [--rounds 5] [--json FILE]

Checkpoints are random, of real models' shapes: a base and two experts in bfloat16. Ways take
turns round by round; medians are compared, and least and greatest are recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, save, spread
from merge_documents import merge_document, merge_recipe
from shaped_checkpoints import SHAPES, checkpoints, tensor_shapes

PARTS = ("memory", "watch", "warm", "disk", "gpu")
ELEMENT_WISE = (
    "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della_linear", "della",
    "breadcrumbs", "breadcrumbs_ties", "consensus_ta",
)  # fmt: skip
AGAINST_MERGEKIT = (
    "linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della_linear",
    "della", "breadcrumbs", "breadcrumbs_ties", "model_stock", "karcher", "multislerp",
)  # fmt: skip
WARM_GOALS = {"linear": 8, "task_arithmetic": 8, "ties": 20, "dare_ties": 20}
DISK_GOALS = {"linear": 2, "ties": 6}
NOT_FASTER = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way (default 5)")
    parser.add_argument("--only", action="append", choices=PARTS, help="default: all parts")
    parser.add_argument("--method", action="append", help="default: all methods")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "safemerge-merge-speed",
        help="where checkpoints are made and kept",
    )
    parser.add_argument(
        "--mergekit", type=Path, default=Path("benchmarks/.peers/mergekit"), help="its environment"
    )
    options = parser.parse_args()
    os.environ["SAFEMERGE_CACHE"] = str(options.work / "cache")
    (options.work / "cache").mkdir(parents=True, exist_ok=True)

    import torch

    told = {"machine": machine() | {"threads": torch.get_num_threads()}, "rounds": options.rounds}
    parts = options.only or PARTS
    for name in options.shape or ["smollm2-135m"]:
        folders = checkpoints(options.work / "checkpoints", name, experts=2)
        told[name] = {}
        for part in [part for part in parts if part != "gpu"]:
            told[name][part] = globals()[f"_{part}"](folders, options)
    if "gpu" in parts and torch.cuda.is_available():
        told["gpu"] = _gpu(options)
    if options.json:
        save(options.json, told)


def _chosen(methods, options):
    return [method for method in methods if not options.method or method in options.method]


class _InMemory:
    """A merge into tensors that are there already, again and again."""

    def __init__(self, document, device="cpu"):
        import torch

        from safemerge.merge import ResidentCheckpoints

        self.recipe = merge_recipe(document)
        self.resident = ResidentCheckpoints.open(self.recipe, check=False)
        self.device = device
        base = self.resident.base
        self.out = {
            name: torch.empty(base.shape(name), dtype=base.dtype(name), device=device)
            for name in base.distinct_names
        }

    def run(self):
        from safemerge.merge import merged_tensors

        started = time.perf_counter()
        stream = merged_tensors(
            self.recipe,
            self.resident.checkpoints,
            thresholds=self.resident.thresholds,
            spectra=self.resident.spectra,
            device=self.device,
            destination=lambda name, *_: self.out[name],
        )
        for _ in stream:
            pass
        _wait(self.device)
        return time.perf_counter() - started

    def forget_thresholds(self):
        """As if the next density were new: counts stay, thresholds go."""
        self.resident.thresholds.forget()

    @property
    def num_bytes(self):
        """Read and written."""
        result = sum(tensor.nbytes for tensor in self.out.values())
        return result * (1 + len(self.recipe.checkpoints))


def _copy_time(num_bytes, device="cpu"):
    """Seconds to copy: half of the bytes are read, half written."""
    import torch

    source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    _wait(device)

    def run():
        started = time.perf_counter()
        target.copy_(source)
        _wait(device)
        return time.perf_counter() - started

    return run


def _wait(device):
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def _rates(found, num_bytes):
    """GB/s by way, from seconds."""
    return {way: spread(num_bytes / 1e9 / t for t in times) for way, times in found.items()}


def _take_turns(ways, rounds):
    """Seconds of each way, after one round that does not count."""
    for run in ways.values():
        run()
    found = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            found[way].append(run())
    return found


def _memory(folders, options):
    print(f"\nin memory, GB/s read and written, of a copy's ({machine()['cpu']})")
    rows = {}
    for method in _chosen(ELEMENT_WISE, options):
        merge = _InMemory(merge_document(method, folders))
        copy = _copy_time(merge.num_bytes)
        found = _take_turns({"merge": merge.run, "copy": copy}, options.rounds)
        rates = {
            way: spread(merge.num_bytes / 1e9 / t for t in times) for way, times in found.items()
        }
        share = rates["merge"]["median"] / rates["copy"]["median"]
        rows[method] = {**rates, "share": share}
        met = "" if share >= 0.5 else "  below the goal of 50 %"
        print(
            f"{method:<18}{rates['merge']['median']:>8.1f} of {rates['copy']['median']:5.1f}"
            f"{100 * share:>6.0f} %{met}"
        )
    return rows


def _watch(folders, options):
    from unittest.mock import patch

    from safemerge.weights.tensor_file import TensorFile

    print("\nin memory, seconds a merge, files watched and not")
    rows = {}
    for method in _chosen(("linear", "ties"), options):
        merge = _InMemory(merge_document(method, folders))

        def unwatched(merge=merge):
            with patch.object(TensorFile, "check_unchanged", lambda _: None):
                return merge.run()

        found = _take_turns({"watched": merge.run, "unwatched": unwatched}, options.rounds)
        rows[method] = {way: spread(times) for way, times in found.items()}
        watched, plain = (rows[method][way]["median"] for way in found)
        rows[method]["ratio"] = watched / plain
        print(f"{method:<18}{watched:>8.3f} and {plain:5.3f}{watched / plain:>8.3f} times")
    return rows


def _warm(folders, options):
    print("\nin memory, seconds a merge, against mergekit's")
    rows = {}
    for method in _chosen(AGAINST_MERGEKIT, options):
        document = merge_document(method, folders)
        merge = _InMemory(document)
        ways = {"safemerge": merge.run}
        if method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
            ways["new density"] = lambda merge=merge: (merge.forget_thresholds(), merge.run())[1]
        with _Mergekit(options, document) as peer:
            ways["mergekit"] = peer.run
            found = _take_turns(ways, options.rounds)
        rows[method] = {way: spread(times) for way, times in found.items()}
        _print_ratio(method, rows[method], WARM_GOALS.get(method, NOT_FASTER))
    return rows


class _Mergekit:
    """mergekit in a process of its own, which merges once for each line it is sent."""

    def __init__(self, options, document):
        python = options.mergekit / "bin" / "python"
        if not python.exists():
            sys.exit(f"{python}: must be mergekit's environment; run `make bench-peers`.")
        script = Path(__file__).with_name("mergekit_warm.py")
        self.process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_offline(),
        )
        self._ask(json.dumps(document))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def run(self):
        return float(self._ask("merge"))

    def _ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def _disk(folders, options):
    import yaml

    print("\nto disk, whole commands")
    rows = {}
    scratch = Path(tempfile.mkdtemp(prefix="merge-", dir=options.work))
    try:
        for method in _chosen(AGAINST_MERGEKIT, options):
            file = scratch / f"{method}.yaml"
            file.write_text(yaml.safe_dump(merge_document(method, folders)))
            out = scratch / "out"
            safemerge = [Path(sys.executable).with_name("safemerge"), "merge", file, out]
            mergekit = [options.mergekit / "bin" / "mergekit-yaml", file, out]
            mergekit += ["--no-copy-tokenizer", "--allow-crimes", "--quiet"]
            ways = {"safemerge": safemerge, "mergekit": mergekit}
            found = {way: [_command(command, out)] for way, command in ways.items()}
            for _ in range(options.rounds):
                for way, command in ways.items():
                    found[way].append(_command(command, out))
            rows[method] = {way: spread(t for t, _ in done[1:]) for way, done in found.items()}
            rows[method]["first"] = {way: done[0][0] for way, done in found.items()}
            rows[method]["peak_gib"] = {
                way: max(peak for _, peak in done) for way, done in found.items()
            }
            _print_ratio(method, rows[method], DISK_GOALS.get(method, NOT_FASTER))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return rows


def _command(command, out):
    """Wall seconds and peak memory of a command, GiB, mapped files included."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    complaints = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=complaints,
        env=_offline(),
    )
    # NOTE: not the kernel's ru_maxrss, which begins at this process's own peak.
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_kib(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.returncode:
        complaints.seek(0)
        told = complaints.read().decode()[-600:]
        sys.exit(f"{command[0]}: exit {process.returncode}: {told}")
    complaints.close()
    return seconds, peak / 2**20


def _peak_kib(pid):
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _offline():
    return os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def _print_ratio(method, row, goal):
    ours, theirs = row["safemerge"]["median"], row["mergekit"]["median"]
    text = f"{method:<18}{ours:>8.2f} s{theirs:>9.2f} s{theirs / ours:>7.1f} x"
    if "new density" in row:
        text += f"  (new density {row['new density']['median']:.2f} s)"
    if "peak_gib" in row:
        text += f"  peak {row['peak_gib']['safemerge']:.2f}, {row['peak_gib']['mergekit']:.2f} GiB"
        text += f"  (first {row['first']['safemerge']:.2f} s)"
    print(text + ("" if theirs / ours >= goal else f"  below the goal of {goal} x"), flush=True)


def _gpu(options):
    """GB/s of the merge of one layer of an 8B model at a time, against a copy on the device."""
    import torch

    print(f"\non {torch.cuda.get_device_name()}, GB/s read and written, of a copy's")
    rows = {}
    for method in _chosen(("linear", "task_arithmetic", "ties", "dare_ties"), options):
        merge = _OnDevice(method)
        ways = {"merge": merge.run, "copy": _copy_time(merge.num_bytes, "cuda")}
        found = _take_turns(ways, options.rounds)
        rates = {
            way: spread(merge.num_bytes / 1e9 / t for t in times) for way, times in found.items()
        }
        share = rates["merge"]["median"] / rates["copy"]["median"]
        rows[method] = {**rates, "share": share, "device": torch.cuda.get_device_name()}
        print(
            f"{method:<18}{rates['merge']['median']:>8.0f} of {rates['copy']['median']:5.0f}"
            f"{100 * share:>6.0f} %"
        )
    return rows


class _OnDevice:
    """The tensors of an 8B-shaped base and two experts, resident on the device."""

    def __init__(self, method):
        import torch

        from safemerge.merge import ThresholdCache

        folders = {name: Path(name) for name in ("base", "expert1", "expert2")}
        self.recipe = merge_recipe(merge_document(method, folders))
        self.thresholds = ThresholdCache()
        generator = torch.Generator("cuda").manual_seed(0)
        self.tensors = {
            name: [
                torch.empty(dims, dtype=torch.bfloat16, device="cuda").normal_(
                    0.0, 0.02, generator=generator
                )
                for _ in range(3)
            ]
            for name, dims in tensor_shapes(SHAPES["llama-8b"]).items()
        }
        self.num_bytes = 4 * sum(held[0].nbytes for held in self.tensors.values())

    def run(self):
        import torch

        from safemerge.merge import merge_tensor

        torch.cuda.synchronize()
        started = time.perf_counter()
        for name, (base, first, second) in self.tensors.items():
            merge_tensor(
                self.recipe.method,
                tensor=name,
                base=base,
                experts={"expert1": first, "expert2": second},
                thresholds=self.thresholds,
            )
        torch.cuda.synchronize()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
