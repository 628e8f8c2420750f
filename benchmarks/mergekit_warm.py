"""Runs in mergekit's environment: merges in memory, once for each line it is sent.

The first line is a mergekit file as JSON; the answer says that its models are loaded. Each later
line is answered with the seconds of one merge.
"""

import json
import sys
import time
from pathlib import Path

from mergekit.merge_methods import merge_state_dicts
from safetensors.torch import load_file


def main():
    document = json.loads(sys.stdin.readline())
    entries = document["models"]
    paths = [entry["model"] for entry in entries]
    base = document.get("base_model")
    if base is not None and base not in paths:
        paths.insert(0, base)
    models = {path: load(Path(path)) for path in paths}
    parameters = dict(document.get("parameters") or {})
    for name in sorted({name for entry in entries for name in entry.get("parameters", {})}):
        parameters[name] = {
            path: next(
                (entry["parameters"][name] for entry in entries if entry["model"] == path), 0.0
            )
            for path in paths
            if path != base or document["merge_method"] == "linear"
        }
    answer("loaded")
    for _ in sys.stdin:
        started = time.perf_counter()
        merge_state_dicts(models, document["merge_method"], parameters=parameters, base=base)
        answer(time.perf_counter() - started)


def load(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def answer(text):
    print(text, flush=True)


if __name__ == "__main__":
    main()
