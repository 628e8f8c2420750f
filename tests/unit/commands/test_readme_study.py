"""The README's shortest study, as it is printed, over small models and small data."""

import json
import random
import re
from pathlib import Path

import pytest

from safemerge.cli import main
from safemerge.data import rows
from safemerge.testing.pico import pico_adapter, pico_base, pico_expert

ROOT = Path(__file__).resolve().parents[3]
PRINTED = re.search(
    r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)


def words(*seed):
    """Twelve words that no other seed has together."""
    drawn = random.Random(str(seed))
    return " ".join("".join(drawn.choices("abcdefghij", k=5)) for _ in range(12))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The printed file beside models at its paths and a hub in the working directory."""
    base = pico_base(tmp_path / "llama-3.1-8b-instruct")
    pico_expert(base, tmp_path / "llama-3.1-8b-math", seed=1)
    pico_adapter(base, tmp_path / "llama-3.1-8b-code-lora", seed=2)
    # `datasets` takes a folder of the data set's name for it.
    hub = tmp_path / "openai" / "gsm8k"
    hub.mkdir(parents=True)
    for split, count in (("train", 8), ("test", 1300)):
        lines = [
            {"question": f"{words(split, n)}?", "answer": f"So it is.\n#### {8 * n + 1}"}
            for n in range(count)
        ]
        (hub / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: test, path: test.jsonl}\n---\n"
    )
    prompts = [{"prompt": f"How to {words('harm', n)}?"} for n in range(120)]
    monkeypatch.setattr(rows, "packaged_rows", lambda *_, **__: prompts)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    text = PRINTED.group(1).replace("/models/", f"{tmp_path}/")
    (tmp_path / "mine.yaml").write_text(text)
    return "mine.yaml"


def test_the_shortest_study_is_sound_as_printed(study, capsys):
    assert main(["validate", study]) == 0
    assert main(["search", study, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "dry run: the study is sound" in said.out + said.err
