"""Every command given every kind of bad file: exit code 2, one message, no traceback."""

import copy
import shutil

import pytest
import yaml

from safemerge.cli import main

STUDY = {
    "name": "s",
    "base": {"name": "base", "path": "base"},
    "experts": [{"name": "math", "path": "math"}],
    "spaces": [
        {
            "name": "t",
            "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
            "vary": {"method.weights.math": {"low": 0.0, "high": 1.0}},
        }
    ],
    "suites": [
        {
            "name": "q",
            "task": {"kind": "exact_match", "max_tokens": 8},
            "search": {"source": {"kind": "file", "path": "a.jsonl"}, "label": "answer"},
            "report": {"source": {"kind": "file", "path": "b.jsonl"}, "label": "answer"},
        }
    ],
    "objectives": [{"metric": "q.accuracy", "direction": "maximize", "reference": 0.0}],
    "num_trials": 2,
    "evaluator": {"engine": "transformers", "gpus_per_replica": 0, "max_model_len": 128},
}
RECIPE = {
    "base": {"name": "base", "path": "base"},
    "experts": [{"name": "math", "path": "math"}],
    "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
}

COMMANDS = {
    "validate": ["validate", "{file}"],
    "search": ["search", "{file}"],
    "dry run": ["search", "{file}", "--dry-run"],
    "evaluate": ["evaluate", "{file}", "--model", "base"],
    "serve": ["serve", "{file}"],
    "merge": ["merge", "{file}", "out"],
    "statistics": ["statistics", "{file}"],
    "align": ["align", "{file}"],
    "finetune": ["finetune", "{file}"],
    "optimize": ["optimize", "{file}"],
    "generate": ["generate", "{file}"],
    "robustness": ["robustness", "{file}", "--dry-run"],
}

ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
FILES = {
    "empty": b"",
    "only a comment": b"# nothing\n",
    "no mapping": b"- 1\n- 2\n",
    "text": b"hello\n",
    "not UTF-8": b"name: \xff\xfe\n",
    "UTF-16": "name: s\n".encode("utf-16"),
    "a NUL": b"name: a\x00b\n",
    "not YAML": b"name: [1, 2\n",
    "a tab": b"name:\n\t- 1\n",
    "two documents": b"name: s\n---\nname: t\n",
    "nested deeply": b"[" * 100_000,
    "nested deeply and closed": b"name: " + b"[" * 3000 + b"]" * 3000,
    "mappings nested deeply": b"{a: " * 3000 + b"1" + b"}" * 3000,
    "aliases of aliases": ALIASES.encode(),
    "aliases of aliases as merges": b"a0: &a0 {x: 1}\n"
    + b"".join(
        b"a%d: &a%d {<<: [%s]}\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10))
        for n in range(1, 12)
    ),
    "an alias of itself": b"name: &a [*a]\n",
    "an unknown alias": b"name: *b\n",
    "a huge number": b"num_trials: " + b"9" * 5000 + b"\n",
    "a huge number in hexadecimal": b"num_trials: 0x" + b"f" * 5000 + b"\n",
    "a huge number in base 60": b"num_trials: 1" + b":59" * 5000 + b"\n",
    "a number with an unknown tag": b"num_trials: !!python/object/apply:os.getcwd []\n",
    "an int that is none": b"num_trials: !!int x\n",
    "a timestamp that cannot be": b"name: 2024-99-99\n",
    "binary": b"name: !!binary x\n",
    "a set": b"name: !!set {a, b}\n",
    "a key that is a list": b"? [a, b]\n: 1\n",
    "a key twice": b"name: a\nname: b\n",
    "a surrogate": b'name: "\\ud800"\n',
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_base, tiny_experts):
    """A folder with a base, an expert and two data sets; read only."""
    root = tmp_path_factory.mktemp("bad")
    shutil.copytree(tiny_base, root / "base")
    shutil.copytree(tiny_experts["math"], root / "math")
    for name in ("a", "b"):
        (root / f"{name}.jsonl").write_text(f'{{"prompt": "one {name}", "answer": "yes"}}\n' * 1)
    return root


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """The same as links in the current folder, which may be written to; no cluster starts."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "safemerge.distributed.cluster.ray_cluster", lambda: pytest.fail("a cluster was started")
    )
    return tmp_path


@pytest.fixture
def refused(here, capsys):
    """Run a command that must be refused; its one message."""

    def refused(*arguments):
        assert main([str(item) for item in arguments]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert err.startswith("safemerge: "), err
        assert err.count("safemerge: ") == 1, err
        return err

    return refused


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("command", ["validate", "merge"])
def test_a_file_that_cannot_be_read_is_named(command, kind, refused, here):
    (here / "f.yaml").write_bytes(FILES[kind])
    message = refused(*(word.format(file="f.yaml") for word in COMMANDS[command]))
    assert message.startswith("safemerge: f.yaml"), message
    assert len(message) < 2000


def paths(here):
    (here / "folder").mkdir()
    (here / "broken").symlink_to(here / "nowhere")
    (here / "circle").symlink_to(here / "circle")
    return {
        "missing": "none.yaml",
        "a folder": "folder",
        "a broken link": "broken",
        "a circle of links": "circle",
        "a NUL": "a\0b.yaml",
        "too long a name": "x" * 300,
        "too long a path": "x/" * 3000,
        "inside a file": "a.jsonl/x.yaml",
        "an unknown user": "~nobody-of-this-name/x.yaml",
        "nothing": "",
        "a surrogate": "\udcff.yaml",
        "a device": "/dev/null",
    }


KINDS = (
    "missing", "a folder", "a broken link", "a circle of links", "a NUL", "too long a name",
    "too long a path", "inside a file", "an unknown user", "nothing", "a surrogate", "a device",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *(("search", kind) for kind in KINDS),
        *((command, kind) for command in COMMANDS for kind in ("a folder", "a circle of links")),
    ],
)
def test_a_file_that_is_not_there_is_named(command, kind, refused, here):
    path = paths(here)[kind]
    refused(*(word.format(file=path) for word in COMMANDS[command]))


def write(here, document):
    (here / "f.yaml").write_text(yaml.safe_dump(document))
    return "f.yaml"


def test_what_the_bad_inputs_differ_from_is_sound(here, capsys):
    assert main(["search", write(here, STUDY), "--dry-run"]) == 0
    assert main(["merge", write(here, RECIPE), "out"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("command", "which"),
    [
        ("search", "base"), ("dry run", "expert"), ("evaluate", "base"), ("merge", "base"),
        ("merge", "expert"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_named(command, which, kind, refused, here):
    document = copy.deepcopy(RECIPE if command in ("merge", "statistics") else STUDY)
    ref = document["base"] if which == "base" else document["experts"][0]
    ref["path"] = paths(here)[kind]
    arguments = [word.format(file=write(here, document)) for word in COMMANDS[command]]
    if command == "evaluate":
        arguments[-1] = ref["path"]
    refused(*arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["report"])
def test_data_that_are_not_there_are_named(split, kind, refused, here):
    document = copy.deepcopy(STUDY)
    document["suites"][0][split]["source"]["path"] = paths(here)[kind]
    refused("search", write(here, document), "--dry-run")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("missing", "nothing")])
def test_an_output_folder_that_cannot_be_is_refused_before_anything_is_read(kind, refused, here):
    place = paths(here)[kind]
    if kind in ("a folder",):
        (here / "folder" / "x").write_text("")
    document = copy.deepcopy(RECIPE)
    document["base"]["path"] = "no-model"  # so that reading would say something else
    assert "no-model" not in refused("merge", write(here, document), place)


@pytest.mark.parametrize("place", ["base", "base/out", "math/x/y"])
def test_an_output_folder_in_an_input_is_refused(place, refused, here):
    refused("merge", write(here, RECIPE), place)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("missing", "nothing", "a folder")])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_results_folder_that_cannot_be_is_refused(options, kind, refused, here):
    place = paths(here)[kind]
    refused("search", write(here, STUDY), "--results", place, *options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["report", "export"])
def test_a_run_folder_that_is_none_is_refused(command, kind, refused, here):
    rest = ["--pick", "knee", "out"] if command == "export" else []
    refused(command, paths(here)[kind], *rest)
