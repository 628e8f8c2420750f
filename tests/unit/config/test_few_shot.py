import pytest

from safemerge.config.document import parse_document
from safemerge.config.few_shot import FewShot
from safemerge.errors import ConfigError

FILE = {"kind": "file", "path": "shots.jsonl"}


@pytest.mark.parametrize("given", [{}, {"source": FILE, "rows": [{"prompt": "a"}]}])
def test_examples_are_a_source_or_written_out_and_never_both(given):
    with pytest.raises(ConfigError, match="exactly one of source and rows must be given"):
        parse_document(given, FewShot, where="s")


def test_a_source_is_taken_from_the_files_folder(tmp_path):
    made = parse_document({"source": FILE}, FewShot, where="s").located(tmp_path)
    assert made.source.path == str(tmp_path / "shots.jsonl")
    written = parse_document({"rows": [{"prompt": "a", "answer": "b"}]}, FewShot, where="s")
    assert written.located(tmp_path) == written
