import json

from safemerge.training.log import EVENTS_FOLDER, LOG_FILE, MetricsLog
from safemerge.training.sft import StepMetrics


def test_a_step_is_one_line_with_what_it_has(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(StepMetrics(1, 0.5, 1.5, 20))
    log.write(StepMetrics(2, 0.25, 1.0, 30, harmful_loss=4.0))
    log.close()
    resumed = MetricsLog(tmp_path)
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
