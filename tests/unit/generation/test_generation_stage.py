import pytest

from safemerge.errors import StudyError
from safemerge.generation.record import Ask, Outcome
from safemerge.generation.stage import StageFile

BATCHES = [
    [Ask(id=f"{batch}-{place}", prompt="p", max_tokens=4) for place in range(2)]
    for batch in range(3)
]


def work(asked):
    def work(batches):
        for batch in batches:
            asked.append(batch[0].id)
            yield [Outcome(text=ask.id) for ask in batch]

    return work


def texts(stage, batches, asked):
    return [[one.text for one in made] for made in stage.outcomes(batches, work(asked))]


EXPECTED = [["0-0", "0-1"], ["1-0", "1-1"], ["2-0", "2-1"]]


def test_a_killed_stage_asks_only_what_is_missing(tmp_path):
    asked = []
    running = StageFile(tmp_path / "stages", "s", "d1").outcomes(BATCHES, work(asked))
    next(running), next(running)  # then killed
    assert texts(StageFile(tmp_path / "stages", "s", "d1"), BATCHES, asked) == EXPECTED
    assert texts(StageFile(tmp_path / "stages", "s", "d1"), BATCHES, asked) == EXPECTED
    assert asked == ["0-0", "1-0", "2-0"]


def test_rounds_go_on_where_the_last_one_ended(tmp_path):
    asked = []
    stage = StageFile(tmp_path, "s", "d1")
    assert texts(stage, BATCHES[:1], asked) + texts(stage, BATCHES[1:], asked) == EXPECTED
    again = StageFile(tmp_path, "s", "d1")
    assert texts(again, BATCHES[:2], asked) + texts(again, BATCHES[2:], asked) == EXPECTED
    assert len(asked) == 3


def test_a_torn_line_is_asked_again(tmp_path):
    asked = []
    texts(StageFile(tmp_path, "s", "d1"), BATCHES, asked)
    path = tmp_path / "s-d1.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    digests = path.with_suffix(".digest")
    digests.write_bytes(b"".join(digests.read_bytes().splitlines(keepends=True)[:-1]))
    assert texts(StageFile(tmp_path, "s", "d1"), BATCHES, asked) == EXPECTED
    assert asked == ["0-0", "1-0", "2-0", "2-0"]


def test_another_digest_is_another_file(tmp_path):
    asked = []
    texts(StageFile(tmp_path, "s", "d1"), BATCHES, asked)
    texts(StageFile(tmp_path, "s", "d2"), BATCHES, asked)
    assert len(asked) == 6


def test_a_damaged_line_is_named_and_not_repeated(tmp_path):
    texts(StageFile(tmp_path, "s", "d1"), BATCHES, [])
    path = tmp_path / "s-d1.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "secret words", lines[2]]) + "\n")
    with pytest.raises(
        StudyError, match=r"s-d1\.jsonl, line 2: must be as it was written.*Remove the file"
    ) as told:
        StageFile(tmp_path, "s", "d1")
    assert "secret" not in str(told.value)


def test_stored_batches_of_another_size_are_refused(tmp_path):
    texts(StageFile(tmp_path, "s", "d1"), BATCHES, [])
    with pytest.raises(StudyError, match="got 2 outcomes for 1 prompts"):
        texts(StageFile(tmp_path, "s", "d1"), [BATCHES[0][:1]], [])
