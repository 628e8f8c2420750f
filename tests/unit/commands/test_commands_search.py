"""What a dry run says and refuses: nothing is started in these tests."""

import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from safemerge.cli import main
from safemerge.data import suite
from safemerge.distributed import cluster
from safemerge.testing.landscapes import landscape_study
from safemerge.testing.pico import change_config, pico_base


@pytest.fixture
def dry_study(tmp_path, tiny_base, tiny_experts):
    """Write a study over pico models, with fields replaced; return its file."""

    def write(**fields):
        declared = landscape_study("toy").resolved()
        paths = {"skill": tiny_experts["math"], "safety": tiny_experts["safety"]}
        declared["base"]["path"] = str(tiny_base)
        for expert in declared["experts"]:
            expert["path"] = str(fields.get(expert["name"], paths[expert["name"]]))
        declared["evaluator"] |= {"engine": "transformers", **fields.get("evaluator", {})}
        declared["suites"] = declared["suites"][:1]
        declared["suites"][0]["task"]["labels"] = ["positive", "negative"]
        for split in ("search", "report"):
            declared["suites"][0][split]["prompt"] = "{prompt}"
        metric = f"{declared['suites'][0]['name']}.accuracy"
        declared["objectives"] = [{"metric": metric, "direction": "maximize", "reference": 0.0}]
        declared["constraints"] = []
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(declared), encoding="utf-8")
        return path

    return write


def dry_run(path, tmp_path):
    return main(["search", str(path), "--dry-run", "--results", str(tmp_path / "results")])


def test_a_dry_run_says_what_is_sound_and_what_differs(dry_study, tiny_expert, tmp_path, capsys):
    other = shutil.copytree(tiny_expert, tmp_path / "other")
    change_config(other, rms_norm_eps=1e-2)
    assert dry_run(dry_study(skill=other), tmp_path) == 0
    text = capsys.readouterr().out
    assert "note: expert 'skill' has settings" in text
    assert "rms_norm_eps base 1e-06, expert 0.01" in text
    assert text.endswith("dry run: the study is sound; nothing was started\n")


class Stopped(Exception):
    """Ends a search where its cluster would start."""


@pytest.fixture
def loads(monkeypatch):
    """Collect the names of the suites that are loaded, both splits at a time."""
    found = []
    real = suite.load_splits

    def counted(suites):
        found.append([one.name for one in suites])
        return real(suites)

    monkeypatch.setattr(suite, "load_splits", counted)
    return found


def test_a_dry_run_loads_suites_once(dry_study, tmp_path, loads):
    assert dry_run(dry_study(), tmp_path) == 0
    assert len(loads) == 1


def test_a_search_loads_suites_once_before_it_starts_replicas(
    dry_study, tmp_path, loads, monkeypatch
):
    def stop():
        raise Stopped

    monkeypatch.setattr(cluster, "ray_cluster", stop)
    with pytest.raises(Stopped):
        main(["search", str(dry_study()), "--results", str(tmp_path / "results")])
    assert (tmp_path / "results" / "toy" / "study.json").exists()
    assert len(loads) == 1


def test_a_dry_run_refuses_experts_that_cannot_be_merged(dry_study, tmp_path, capsys):
    deeper = pico_base(tmp_path / "deeper", num_layers=3)
    assert dry_run(dry_study(skill=deeper), tmp_path) == 2
    printed = capsys.readouterr()
    assert "expert 'skill': experts must share the base architecture" in printed.err
    assert "num_hidden_layers base 2, expert 3" in printed.err
    assert "sound" not in printed.out


def test_a_dry_run_refuses_weights_that_are_not_finite(dry_study, tiny_expert, tmp_path, capsys):
    broken = shutil.copytree(tiny_expert, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert dry_run(dry_study(safety=broken), tmp_path) == 2
    assert "weights must be finite" in capsys.readouterr().err


def test_a_dry_run_refuses_gpus_that_this_machine_lacks(dry_study, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert dry_run(dry_study(evaluator={"gpus_per_replica": 2}), tmp_path) == 2
    assert "cluster: must have the GPUs of the least replicas, 2" in capsys.readouterr().err


def test_a_dry_run_refuses_a_base_that_the_engine_cannot_load(
    dry_study, tiny_base, tiny_experts, tmp_path, capsys
):
    folders = {"base": tiny_base, "skill": tiny_experts["math"], "safety": tiny_experts["safety"]}
    copies = {name: shutil.copytree(path, tmp_path / name) for name, path in folders.items()}
    for folder in copies.values():
        change_config(folder, model_type="my_model")
    path = dry_study(skill=copies["skill"], safety=copies["safety"])
    path.write_text(path.read_text().replace(str(tiny_base), str(copies["base"])))
    assert dry_run(path, tmp_path) == 2
    assert "evaluator.engine: transformers must know the base" in capsys.readouterr().err


def test_a_dry_run_refuses_a_base_that_an_engine_would_quantise(
    dry_study, tiny_base, tmp_path, capsys
):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    change_config(base, quantization_config={"quant_method": "gptq", "bits": 4})
    path = dry_study()
    path.write_text(path.read_text().replace(str(tiny_base), str(base)))
    assert dry_run(path, tmp_path) == 2
    assert "got quantization_config (gptq, 4-bit). Remove it" in capsys.readouterr().err
