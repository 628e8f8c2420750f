import json

from safemerge.training.log import EVENTS_FOLDER, LOG_FILE, FollowedLog, MetricsLog
from safemerge.training.sft import StepMetrics


def test_a_step_is_one_line_with_what_it_has(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(StepMetrics(1, 0.5, 1.5, 20))
    log.write(StepMetrics(2, 0.25, 1.0, 30, harmful_loss=4.0))
    log.close()
    resumed = MetricsLog(tmp_path, done=2)
    resumed.write(StepMetrics(3, 0.125, 1.0, 30))
    resumed.close()
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 0.5, "grad_norm": 1.5, "num_tokens": 20}
    assert lines[1]["harmful_loss"] == 4.0
    assert [line["step"] for line in lines] == [1, 2, 3]


def test_values_are_there_for_tensorboard(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(StepMetrics(1, 0.5, 1.5, 20, difference_ratio=0.75))
    log.close()
    (events,) = (tmp_path / EVENTS_FOLDER).iterdir()
    content = events.read_bytes()
    for name in (b"loss", b"grad_norm", b"difference_ratio"):
        assert name in content
    assert b"proximal" not in content


def test_without_a_writer_the_lines_are_still_there(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    log = MetricsLog(tmp_path)
    log.write(StepMetrics(1, 0.5, 1.5, 20))
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]


def step(number, loss=1.0):
    return StepMetrics(number, loss, 1.5, 20)


def steps(folder):
    lines = (folder / LOG_FILE).read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def test_a_resumed_stage_drops_the_steps_that_it_takes_again(tmp_path):
    log = MetricsLog(tmp_path)
    for number in range(1, 6):
        log.write(step(number))
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write('{"step": 6, "lo')
    resumed = MetricsLog(tmp_path, done=3)
    resumed.write(step(4, loss=0.5))
    assert steps(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 0.5)]
    anew = MetricsLog(tmp_path)
    anew.write(step(1, loss=0.25))
    assert steps(tmp_path) == [(1, 0.25)]
    for each in (log, resumed, anew):
        each.close()


def test_lines_are_told_once_and_only_when_they_are_finished(tmp_path):
    followed = FollowedLog(tmp_path)
    assert followed.new() == []
    path = tmp_path / LOG_FILE
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert followed.new() == [{"step": 1}, {"step": 2}]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert followed.new() == [{"step": 3}]
    assert FollowedLog(tmp_path).new() == []


def test_a_log_that_is_cut_while_it_is_followed_is_told_from_there_on(tmp_path):
    log = MetricsLog(tmp_path)
    for number in range(1, 6):
        log.write(step(number))
    log.close()
    followed = FollowedLog(tmp_path)
    resumed = MetricsLog(tmp_path, done=3)
    for number in range(4, 9):
        resumed.write(step(number, loss=0.123456))
    resumed.close()
    assert [line["step"] for line in followed.new()] == [4, 5, 6, 7, 8]
    assert followed.new() == []
