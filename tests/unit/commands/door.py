"""Files that a user brings, and ways to spoil one of them."""

import copy
import json
import shutil
import struct

import yaml

STRANGE = [
    None,
    True,
    False,
    0,
    -1,
    3.5,
    1e308,
    float("inf"),
    float("nan"),
    10**30,
    -(10**30),
    "",
    " ",
    "x",
    "\x00",
    "~nobody/x",
    "/dev/null",
    "/proc/self/mem",
    "..",
    ".",
    "a/b",
    "é",
    "1e5",
    "a" * 5000,
    [],
    {},
    [[]],
    [{}],
    {"": None},
    {"name": None},
    [None],
    ["x", 1, {}],
    {"x": {"x": {}}},
    "0-1",
    "1-",
    "{prompt}",
    "{",
    "*",
    "[",
    "main",
    ["low"],
    {"low": 2, "high": 1},
    -0.0,
    "null",
]


def places(document, path=()):
    """Yield the path of every value in a document."""
    yield path
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], (*path, key))
    elif isinstance(document, list):
        for at, item in enumerate(document):
            yield from places(item, (*path, at))


def changed(document, draw):
    """Return a document with one value replaced, dropped, doubled or added."""
    document = copy.deepcopy(document)
    path = draw.choice(list(places(document)))
    how = draw.choice(["replace", "replace", "replace", "drop", "add", "swap"])
    if not path:
        return draw.choice(STRANGE) if how == "replace" and draw.random() < 0.3 else document
    inside = document
    for key in path[:-1]:
        inside = inside[key]
    if how == "drop":
        del inside[path[-1]]
    elif how == "add" and isinstance(inside, dict):
        inside[draw.choice(["extra", "name", "path", "", "kind", "default"])] = draw.choice(
            STRANGE
        )
    elif how == "add":
        inside.append(copy.deepcopy(draw.choice([*STRANGE, inside[path[-1]]])))
    elif how == "swap":
        other = list(places(document))
        value = document
        for key in draw.choice(other):
            value = value[key]
        inside[path[-1]] = copy.deepcopy(value)
    else:
        inside[path[-1]] = draw.choice(STRANGE)
    return document


def spoil_text(file, draw):
    """Spoil a file's bytes, or the file itself."""
    content = file.read_bytes()
    at = draw.randrange(len(content) + 1)
    how = draw.choice(
        [
            "cut",
            "insert",
            "flip",
            "empty",
            "folder",
            "deep",
            "utf16",
            "alias",
            "gone",
            "loop",
            "lf",
        ]
    )
    if how == "cut":
        file.write_bytes(content[:at])
    elif how == "insert":
        junk = draw.choice(
            [
                b"\xff\xfe",
                b"\x00",
                b"{",
                b"[",
                b"]",
                b'"',
                b"\t",
                b": ",
                b"- ",
                b"&a *a",
                b"!!python/none x",
                b"\n\n",
                b"#",
            ]
        )
        file.write_bytes(content[:at] + junk + content[at:])
    elif how == "flip" and content:
        spoiled = bytearray(content)
        for _ in range(draw.randrange(1, 6)):
            spoiled[draw.randrange(len(spoiled))] = draw.randrange(256)
        file.write_bytes(bytes(spoiled))
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "deep":
        file.write_bytes(
            draw.choice([b"[" * 100_000, b'{"a":' * 100_000, b"a: " * 5000, b"- " * 50_000])
        )
    elif how == "utf16":
        file.write_bytes(content.decode("utf-8", "replace").encode("utf-16"))
    elif how == "alias":
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        file.write_text("\n".join(lines))
    elif how == "gone":
        file.unlink()
    elif how == "loop":
        file.unlink()
        file.symlink_to(file.name)
    elif how == "lf":
        file.write_bytes(content.replace(b"\n", b"\r"))


def spoil_document(file, draw):
    """Change values of a YAML or JSON file."""
    text = file.read_text(encoding="utf-8")
    document = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        document = changed(document, draw)
        if not isinstance(document, dict | list):
            break
    if file.suffix == ".json":
        file.write_text(json.dumps(document), encoding="utf-8")
    else:
        file.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False), "utf-8")


def spoil_lines(file, draw):
    """Change values of a JSON-lines file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    at = draw.randrange(len(lines))
    lines[at] = json.dumps(changed(json.loads(lines[at]), draw))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def spoil_header(file, draw):
    """Change the header of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    how = draw.choice(["length", "json", "json", "json", "bytes", "cut", "longer"])
    if how == "length":
        wrong = draw.choice([0, 1, length - 1, length + 1, 2**63, 2**64 - 1, len(content), 10**8])
        file.write_bytes(struct.pack("<Q", wrong) + content[8:])
    elif how == "json":
        header = json.loads(content[8 : 8 + length])
        header = changed(header, draw)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    elif how == "bytes":
        spoiled = bytearray(content)
        for _ in range(4):
            spoiled[draw.randrange(8 + length)] = draw.randrange(256)
        file.write_bytes(bytes(spoiled))
    elif how == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    else:
        file.write_bytes(content + b"\x00" * draw.choice([1, 7, 8, 4096]))


def spoil(folder, draw):
    """Spoil one file of a folder; return it, and what was done."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    file = draw.choice(files)
    kinds = [spoil_text]
    if file.suffix in (".json", ".yaml", ".yml"):
        kinds += [spoil_document] * 4
    elif file.suffix == ".jsonl":
        kinds += [spoil_lines] * 3
    elif file.suffix == ".safetensors":
        kinds = [spoil_header] * 5 + [spoil_text]
    kind = draw.choice(kinds)
    try:
        kind(file, draw)
    except UnicodeEncodeError:
        file.write_bytes(b"\xed\xa0\x80")
    return str(file.relative_to(folder)), kind.__name__


WORDS = [
    "apple",
    "brick",
    "cloud",
    "dance",
    "eagle",
    "flame",
    "grape",
    "house",
    "ivory",
    "jelly",
    "knife",
    "lemon",
]


def write_door(folder, *, base, expert, adapter):
    """Write what a user brings: study, recipe, mergekit file, stage, data and models."""
    for name, model in (("base", base), ("expert", expert), ("adapter", adapter)):
        shutil.copytree(model, folder / "models" / name)
    rows = [
        {"prompt": f"{WORDS[at]} and {WORDS[-at - 1]}?", "answer": f"{at}", "label": "yn"[at % 2]}
        for at in range(12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rows.csv").write_text(
        "prompt,answer\n"
        + "".join(f"the {WORDS[at]} of {WORDS[at - 5]} {WORDS[at - 3]},{at}\n" for at in range(12))
    )
    refs = [
        {"name": "expert", "path": "models/expert"},
        {"name": "adapter", "path": "models/adapter"},
    ]
    base_ref = {"name": "base", "path": "models/base"}
    suite = {
        "name": "digits",
        "task": {"kind": "exact_match", "max_tokens": 8},
        "search": {
            "source": {"kind": "file", "path": "rows.jsonl", "stop": 6},
            "prompt": "{prompt}",
            "label": "answer",
        },
        "report": {
            "source": {"kind": "file", "path": "rows.jsonl", "start": 6},
            "prompt": "{prompt}",
            "label": "answer",
        },
    }
    table = {
        "name": "table",
        "task": {"kind": "numeric", "max_tokens": 8},
        "search": {
            "source": {"kind": "file", "path": "rows.csv", "stop": 6},
            "prompt": "{prompt}",
            "label": "answer",
        },
        "report": {
            "source": {"kind": "file", "path": "rows.csv", "start": 6},
            "prompt": "{prompt}",
            "label": "answer",
        },
    }
    method = {"name": "ties", "weights": {"expert": 0.5, "adapter": 0.5}, "density": 0.5}
    study = {
        "name": "door",
        "seed": 0,
        "base": base_ref,
        "experts": refs,
        "spaces": [
            {
                "name": "ties",
                "method": method,
                "vary": {
                    "method.lambda": {"low": 0.5, "high": 1.5},
                    "method.weights.expert": {"low": 0.1, "high": 1.0},
                },
            }
        ],
        "suites": [suite, table],
        "objectives": [
            {"metric": "digits.accuracy", "direction": "maximize", "reference": 0.0},
            {"metric": "table.accuracy", "direction": "maximize", "reference": 0.0},
        ],
        "num_trials": 4,
        "sampler": {"name": "tpe", "startup": 2},
        "evaluator": {
            "engine": "transformers",
            "min_replicas": 1,
            "max_replicas": 1,
            "cpus_per_replica": 1,
            "max_model_len": 128,
            "gpus_per_replica": 0,
        },
    }
    recipe = {"base": base_ref, "experts": refs, "method": method}
    mergekit = {
        "merge_method": "ties",
        "base_model": "models/base",
        "models": [
            {"model": "models/expert", "parameters": {"weight": [0.2, 0.8], "density": 0.5}}
        ],
        "parameters": {"normalize": True},
        "dtype": "float32",
        "tokenizer": {
            "source": "base",
            "tokens": {"a": {"source": "models/expert"}},
            "pad_to_multiple_of": 8,
        },
    }
    stage = {
        "kind": "finetune",
        "name": "stage",
        "base": base_ref,
        "steps": 2,
        "batch_size": 2,
        "seed": 0,
        "data": [
            {
                "source": {"kind": "file", "path": "rows.jsonl"},
                "prompt": "{prompt}",
                "response": "{answer}",
            }
        ],
    }
    for name, document in (
        ("study", study),
        ("recipe", recipe),
        ("mergekit", mergekit),
        ("stage", stage),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
