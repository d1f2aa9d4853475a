"""The command `python -m measurements`: names are known before anything is loaded, and each leaves a record."""

import json

import pytest
from helpers import tiny_experiment

from measurements import __main__ as command
from measurements import short_training, throughput
from measurements.throughput import Configuration


@pytest.mark.parametrize("name", ["t5-bas-full", "fits-x", "generate-beams"])
def test_a_measurement_that_is_not_known_is_said_before_anything_is_loaded(name, capsys):
    with pytest.raises(SystemExit):
        command.main(["growth", name, "--dataset", "nowhere"])
    assert f"There is no measurement '{name}'. There are: t5-base-full-plain, " in capsys.readouterr().err


def test_throughput_is_measured_and_recorded(build, tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(throughput.CONFIGURATIONS, "tiny", Configuration("smollm2", batch_size=8, steps=10, warm_up=5))
    monkeypatch.setitem(command.MEASURES, "tiny", throughput.measure)
    monkeypatch.setattr(short_training, "build", build)
    assert command.main(["tiny", "--dataset", str(tiny_data), "--outputs", str(tmp_path), "--batch-size", "4"]) == 0
    record = json.loads((tmp_path / "tiny-batch4.json").read_text("utf-8"))
    assert (record["name"], record["batch_size"], record["micro_batch"]) == ("tiny-batch4", 4, 4)
    assert record["samples_per_second"] > 0 and record["warm_up_seconds"] > 0 and len(record["losses"]) == 2
    assert record["step_milliseconds"] == pytest.approx(4000 / record["samples_per_second"], rel=0.05)
    assert record["micro_batch"] == 4 and record["parameters"] == record["trainable_parameters"] < 1e6
    assert '"tiny-batch4"' in capsys.readouterr().out


def test_a_data_set_that_is_not_there_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["weights", "--dataset", "/nowhere"])
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "There is no folder '/nowhere'" in said and "Traceback" not in said


def test_a_sweep_that_is_interrupted_says_what_is_kept(tiny_data, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.sweep, "run", interrupted)
    line = ["sweep", "grid", "--dataset", str(tiny_data), "--outputs", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        command.main([*line, "--share", "2", "3"])
    assert stopped.value.code == 130 and "so far is kept" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*line, "--share", "second", "3"])
    assert "invalid int value: 'second'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["sweep", "grit", "--dataset", str(tiny_data)])
    assert "There is no search space 'grit'" in capsys.readouterr().err


def test_generation_is_timed(tiny_models, tiny_data, monkeypatch):
    tiny = tiny_experiment(tiny_models["llama"], tiny_data)
    monkeypatch.setattr(throughput.experiments, "experiment", lambda name: tiny)
    splits = {"test": {"dialogue": ["Ann: Hello", "Ben: Hi, Ann!"]}}
    record = {"name": "generate-beams2"}
    throughput.measure_generation(record, splits)
    assert (record["dialogues"], record["num_beams"]) == (2, 2) and record["seconds"] > 0


def test_the_whole_study_is_the_command(monkeypatch):
    lines = []
    monkeypatch.setattr(command.subprocess, "run", lambda line, **_: lines.append(line))
    options = command.argparse.Namespace(dataset="somewhere")
    for name in ("study", "quickstart-cpu"):
        record = {"name": name}
        command.measure_command(record, None, options)
        assert record["seconds"] >= 0
    assert [line[2:-2] for line in lines] == [
        ["dialogue_summarization", "smollm2-dialogsum", "--dataset", "somewhere"],
        ["dialogue_summarization", "quickstart"],
    ]
