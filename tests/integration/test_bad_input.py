"""Whole commands given bad input: one clear message, exit code 2, and what is finished stays."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, nullcontext, suppress
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file, save_file

from safemerge.cli import main
from safemerge.errors import PreflightError
from safemerge.merge import writer
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import MergeLandscape, landscape_study
from tests.integration.driving import wait_until


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_cluster(monkeypatch):
    """What is refused in time starts no cluster."""
    monkeypatch.setattr(
        "safemerge.distributed.cluster.ray_cluster", lambda: pytest.fail("a cluster was started")
    )


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; the lines of its one message."""

    def refused(*arguments):
        assert main([str(item) for item in arguments]) == 2
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert err.count("safemerge: ") == 1, err
        assert err.startswith("safemerge: "), err
        return err.removeprefix("safemerge: ").splitlines()

    return refused


# --- the study ---------------------------------------------------------------------------


def test_every_wrong_key_and_type_of_a_study_is_told_at_once(
    refused, write_study, study_document, tmp_path, no_cluster
):
    evaluator = study_document["evaluator"] | {"max_replica": 2, "cpus_per_replica": "two"}
    lines = refused("search", write_study(num_trials=2.5, sede=1, evaluator=evaluator))
    assert sorted(lines) == [
        f'{tmp_path}/study.yaml: evaluator.cpus_per_replica: must be a number; got "two".',
        f"{tmp_path}/study.yaml: evaluator.max_replica: unknown key; got 2. "
        "Did you mean 'max_replicas'?",
        f"{tmp_path}/study.yaml: num_trials: must be a whole number; got 2.5.",
        f"{tmp_path}/study.yaml: sede: unknown key; got 1. Did you mean 'seed'?",
    ]
    assert not (tmp_path / "results").exists()


def test_both_illegal_ends_of_every_range_are_told_at_once(refused, write_study, no_cluster):
    method = {"name": "ties", "weights": {"math": 0.5, "safety": 0.5}, "density": 0.5}
    space = {"name": "t", "method": method, "vary": {"method.density": {"low": 0, "high": 1.5}}}
    twin = {"name": "u", "method": method, "vary": {"method.densty": {"low": 0.1, "high": 0.5}}}
    lines = refused("search", write_study(spaces=[space, twin]))
    assert [line.split(": ", 1)[1] for line in lines] == [
        "spaces.t.vary.method.density: illegal at 0.0: method.density: must be above 0; got 0.0.",
        "spaces.t.vary.method.density: illegal at 1.5: method.density: must be at most 1; "
        "got 1.5.",
        "spaces.u.vary.method.densty: no such path in the template; got 'method.densty', wrong "
        "at 'densty'. Did you mean 'density'?",
    ]


@pytest.mark.parametrize(
    ("rows", "extent", "words"),
    [
        (0, {}, "must give at least one row; got 0 rows"),
        (8, {"start": 8}, "must give at least one row; got 8 rows and the range 8 to None"),
    ],
)
def test_an_empty_suite_is_refused(
    refused, write_study, study_document, tmp_path, no_cluster, rows, extent, words
):
    lines = [json.dumps({"prompt": f"question {i}", "answer": "yes"}) for i in range(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(line + "\n" for line in lines))
    reviews, questions = study_document["suites"]
    source = {"kind": "file", "path": "rows.jsonl", **extent}
    study = write_study(
        suites=[reviews, questions | {"report": {"source": source, "label": "answer"}}]
    )
    (line,) = refused("search", study, "--dry-run")
    assert line.startswith("suite 'questions', report: ")
    assert words in line


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_recipe_that_cannot_start_a_study_is_refused_before_anything_starts(
    options, refused, write_study, study_document, tmp_path, no_cluster
):
    recipe = {key: study_document[key] for key in ("base", "experts")}
    recipe["experts"] = [
        recipe["experts"][0],
        recipe["experts"][1] | {"path": recipe["base"]["path"]},
    ]
    method = {"name": "task_arithmetic", "weights": {"math": 0.5}}
    (tmp_path / "others.yaml").write_text(yaml.safe_dump(recipe | {"method": method}))
    method = {"name": "ties", "weights": {"math": 0.5}}
    (tmp_path / "ties.yaml").write_text(yaml.safe_dump(recipe | {"method": method}))
    others, ties = str(tmp_path / "others.yaml"), str(tmp_path / "ties.yaml")
    study = write_study(start=["others.yaml"])
    lines = refused("search", study, "--start", ties, *options)
    assert len(lines) == 2
    assert lines[0].startswith(f"{others}: model 'safety': must be the study's; got fingerprint ")
    assert lines[1] == (
        f"{ties}: method: must be that of a space; got 'ties'. The spaces have task_arithmetic. "
        "Add a space with it."
    )


# --- checkpoints -------------------------------------------------------------------------


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def corrupt(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def change_tensor(folder, name, change):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensor(folder, name, lambda tensor: tensor[:-2].contiguous())


def other_vocabulary(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(tokenizer))


def not_finite(folder):
    def change(tensor):
        tensor.view(-1)[7] = float("nan")
        return tensor

    change_tensor(folder, "model.norm.weight", change)


BROKEN = [
    (shutil.rmtree, "a checkpoint must be a folder; got nothing there"),
    (truncate, "model.safetensors"),
    (corrupt, "model.safetensors"),
    (pickle_only, "weights must be safetensors; got a pickle checkpoint (pytorch_model.bin)"),
    (other_shape, "tensor 'model.layers.0.mlp.up_proj.weight'"),
    (other_vocabulary, "got token 'A': base 36, expert 37; token 'B'"),
    (not_finite, "tensor 'model.norm.weight'"),
]


@pytest.fixture
def expert(tiny_expert, tmp_path):
    return shutil.copytree(tiny_expert, tmp_path / "expert")


@pytest.fixture
def recipe(tiny_base, expert, tmp_path):
    document = {
        "base": {"name": "base", "path": str(tiny_base)},
        "experts": [{"name": "math", "path": "expert"}],
        "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(("damage", "words"), BROKEN)
def test_an_expert_that_cannot_be_merged_is_refused_by_name_and_nothing_is_written(
    refused, recipe, expert, tmp_path, damage, words
):
    damage(expert)
    (line,) = refused("merge", recipe, "out/merged")
    assert words in line
    assert str(expert) in line or "expert 'math'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("damage", "words"), BROKEN[:4])
def test_evaluating_an_unreadable_model_starts_no_cluster(
    refused, write_study, expert, no_cluster, damage, words
):
    damage(expert)
    (line,) = refused("evaluate", write_study(), "--model", expert)
    assert words in line
    assert str(expert) in line


# --- the disk ----------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path):
    """Mount a disk of its own, of so many KiB."""
    mounted = []

    def tiny_disk(size):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        if not sys.platform.startswith("linux") or subprocess.run(command, check=False).returncode:
            pytest.skip("no right to mount a disk; the unit tests raise the error by hand")
        mounted.append(folder)
        return folder

    yield tiny_disk
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return folder / "filler"


def test_a_search_without_room_for_its_run_does_not_begin(
    refused, write_study, tiny_disk, no_cluster
):
    disk = tiny_disk(1024)
    (line,) = refused("search", write_study(), "--results", disk)
    assert line.startswith(f"{disk}/pico: needs 100 MB of free space; got 1 MB.")
    assert list(disk.iterdir()) == []


def test_a_search_into_a_file_is_refused(refused, write_study, tmp_path):
    (tmp_path / "results").write_text("mine")
    with pytest.raises(PreflightError, match=r"results/pico: must be a folder; got a file at"):
        RunStore("results/pico").create(landscape_study("pico"))
    assert (tmp_path / "results").read_text() == "mine"


def test_a_disk_that_fills_up_during_a_search_loses_no_finished_trial(tiny_disk):
    disk = tiny_disk(2048)
    spec, landscape = landscape_study("full"), MergeLandscape()
    store = RunStore(disk / "full").create(spec)
    with SearchStudy(spec, store) as study:
        for _ in range(4):
            proposal = study.ask()
            study.tell(proposal.number, landscape.evaluate(proposal.recipe))
        before = store.trials_path.read_bytes()
        proposal = study.ask()
        filler = fill(disk)

        def go_on(proposal):
            while True:
                study.tell(proposal.number, landscape.evaluate(proposal.recipe))
                proposal = study.ask()

        with pytest.raises(PreflightError, match="full: the disk is full; got"):
            go_on(proposal)
    filler.unlink()
    store = RunStore.open(disk / "full")
    with SearchStudy(spec, store) as study:
        proposal = study.ask()
        study.tell(proposal.number, landscape.evaluate(proposal.recipe))
    assert store.trials_path.read_bytes().startswith(before)
    assert {record.number for record in store.trials()} >= {0, 1, 2, 3, proposal.number}


def test_a_disk_that_fills_up_during_a_merge_holds_no_half_checkpoint(
    refused, recipe, tiny_disk, monkeypatch
):
    disk = tiny_disk(300)
    (line,) = refused("merge", recipe, disk / "merged")
    assert "needs 0.06 GiB of disk space; got 0.00 GiB free" in line
    # As if another program took the space after the check.
    roomy = SimpleNamespace(free=2**40)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: roomy)
    (line,) = refused("merge", recipe, disk / "merged")
    assert "got a full disk while writing" in line
    assert list(disk.iterdir()) == []


# --- the engine --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["search", "evaluate", "serve"])
def test_without_vllm_a_study_for_it_is_refused(
    refused, write_study, study_document, tmp_path, monkeypatch, command
):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr("safemerge.distributed.cluster.ray_cluster", nullcontext)
    study = write_study(evaluator=study_document["evaluator"] | {"engine": "vllm"})
    model = ["--model", study_document["base"]["path"]] if command == "evaluate" else []
    (line,) = refused(command, study, *model)
    assert line.startswith("evaluator.engine: vllm must be installed; got no such package.")
    assert "set evaluator.engine: transformers" in line
    assert not (tmp_path / "results" / "pico").exists()


# --- ports -------------------------------------------------------------------------------

USUAL_PORTS = (6379, 8000, 8265, 10001, 52365)
"""Where Ray and Serve listen by default: GCS, HTTP proxy, dashboard, client, agent."""


@pytest.fixture
def taken_ports():
    with ExitStack() as held:
        for port in USUAL_PORTS:
            listener = held.enter_context(socket.socket())
            with suppress(OSError):  # then another program has it, which serves as well
                listener.bind(("0.0.0.0", port))
                listener.listen()
        yield


@pytest.mark.ray
@pytest.mark.slow
def test_serve_comes_up_though_the_usual_ports_are_taken(
    taken_ports, start_safemerge, write_study, tmp_path
):
    server = start_safemerge("serve", write_study())
    told = tmp_path / "told.txt"
    up = "up: Serve application 'safemerge-pico'"
    wait_until(lambda: up in told.read_text(encoding="utf-8"), within_s=240, driver=server)
    server.send_signal(signal.SIGINT)
    code = server.wait(timeout=120)
    assert "safemerge: interrupted; what was finished is kept." in told.read_text(encoding="utf-8")
    assert "Traceback" not in told.read_text(encoding="utf-8")
    assert code == 130
