"""What benchmarks say of the machine they ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from pathlib import Path


def machine():
    """CPU, cores and, where there is one, the GPU, by name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":", 1)[1].strip() if names else model
    told = {"cpu": model, "cores": os.cpu_count()}
    memory = Path("/proc/meminfo")
    if memory.exists():
        told["memory_gib"] = round(int(memory.read_text().split()[1]) / 2**20, 1)
    return told


def spread(values):
    """Median, least and greatest of some rounds."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def save(path, told):
    """Write a record."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"record: {path}")
