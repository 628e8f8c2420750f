"""What `safemerge generate` says at its end works when it is pasted."""

import re

import yaml

from safemerge.config.source import FileSource
from safemerge.generation.command import next_step


def test_the_closing_hint_names_the_file_from_whatever_folder_it_is_pasted_into(
    tmp_path, monkeypatch
):
    folder = tmp_path / "my {data}, #1"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    line = next_step((folder / "safety.jsonl").relative_to(tmp_path))
    pasted = re.search(r"`(source: .*)` with `(response: .*)`", line)
    source = FileSource.model_validate(yaml.safe_load(pasted[1])["source"])
    elsewhere = tmp_path / "training" / "files"
    assert source.located(elsewhere).path == str(folder / "safety.jsonl")
    assert yaml.safe_load(pasted[2]) == {"response": "{response}"}
