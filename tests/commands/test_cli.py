"""The command `study`: as a process of its own where that matters, else in this one."""

import ast
import csv
import errno
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from unittest import mock

import forked
import papermill
import pytest
from helpers import tiny_experiment, tiny_rows, write_jsonl

from dialogue_summarization import data, experiments, report, runs, study
from dialogue_summarization.commands import cli, execution, notebooks, trained
from dialogue_summarization.errors import DataError
from dialogue_summarization.evaluation import comparison
from dialogue_summarization.experiments import METHODS


def write_csv(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.mark.parametrize("code, seconds", [
    ("import dialogue_summarization", 1),
    ("from dialogue_summarization.commands import cli; cli.main(['--help'])", 2),
])  # fmt: skip
def test_importing_and_help_answer_at_once(code, seconds):
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    took = time.perf_counter() - start
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0 and "dialogue_summarization" in imported
    assert not imported & {"torch", "transformers", "pandas", "numpy", "datasets"}, "imported where it is not used"
    assert took < 3 * seconds  # the machine may be busy


def test_help_names_every_experiment_and_command():
    done = subprocess.run([sys.executable, "-m", "dialogue_summarization", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in (*experiments.EXPERIMENTS, "score", "summarize"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nonsense"], "quickstart"),
        (["quickstart", "--runs", "full,bert"], "lora-balanced"),
        (["quickstart", "--limit", "0"], "1 or more"),
        (["quickstart", "--dataset", "./nowhere"], "no folder"),
        (["summarize", "quickstart/nothing", "-"], "no run"),
        (["quickstart", "--runs", ""], "There are: zero-shot"),
        (["quickstart", "--runs", " , "], "There are: zero-shot"),
        (["quickstart", "--outputs", f"{__file__}/outputs"], "Not a directory. Name another folder: --outputs"),
        (["class", f"{__file__}/copies"], "Not a directory. Name another folder"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, said):
    done = forked.command(*arguments)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("left", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_what_a_launcher_left_in_the_environment_is_named(left, tmp_path):
    line = f"`unset {' '.join(left)}`. `study --gpus N`"
    for command in ("quickstart", "doctor"):
        done = forked.command(command, "--outputs", tmp_path, env=left)
        assert done.returncode == 1 and line in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "home").write_text("a file")
    for command in ("quickstart", "doctor"):
        done = forked.command(command, "--outputs", tmp_path, env={"HOME": str(tmp_path / "home")})
        assert (
            done.returncode == 1
            and "JUPYTER_RUNTIME_DIR, to a folder" in done.stderr
            and "Traceback" not in done.stderr
        )
    assert "XDG_CACHE_HOME, to a folder" in done.stderr and "can run here" not in done.stdout


@pytest.mark.parametrize(("encoding", "lacking"), [("cp932", r"\u2013"), ("ascii", r"\u2212")])  # a dash, a minus sign
def test_a_console_that_lacks_a_character_shows_its_number(encoding, lacking, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert cli.main(["compare", "quickstart/zero-shot", "quickstart/full"]) == 0
    shown = written.getvalue().decode(encoding)
    assert lacking in shown and "0.502" in shown and "zero-shot" in shown


def test_a_reader_that_has_read_enough_ends_the_command(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w", encoding="utf-8"))
    assert cli.main(["score", "quickstart/full"]) == 141
    sys.stdout.close()  # as at the process's end: nothing is left to be said


def test_a_full_disk_and_too_little_memory_are_lines(monkeypatch, capsys):
    for error, said in (
        (
            OSError(errno.ENOSPC, "No space left on device", "x.csv"),
            "x.csv cannot be used: No space left on device. Free",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "GB of memory are free. Close other programs"),
    ):
        monkeypatch.setattr(notebooks, "run_experiment", mock.Mock(side_effect=error))
        assert cli.main([]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setattr(notebooks, "run_experiment", mock.Mock(side_effect=FileNotFoundError(errno.ENOENT, "bug")))
    with pytest.raises(FileNotFoundError):
        cli.main([])


def test_no_experiment_means_quickstart(monkeypatch):
    seen = []
    monkeypatch.setattr(notebooks, "run_experiment", lambda options: seen.append((options.command, options.limit)))
    assert cli.main([]) == 0 and cli.main(["--limit", "3"]) == 0
    assert seen == [("quickstart", None), ("quickstart", 3)]


def test_runs_that_no_notebook_teaches_are_made_and_compared(tiny, register, monkeypatch, tmp_path, capsys):
    seen = []

    def execute(sources, folder, ending):
        seen.extend((path.stem, given.get("RUNS")) for path, given in sources.items())
        exec(ending)  # prints, as in the notebooks' kernel
        return ""

    monkeypatch.setattr(execution, "execute", execute)
    register(tiny)
    runs = "last-2-blocks,lora-balanced,lora-plus"
    assert cli.main(["tiny", "--runs", runs, "--outputs", str(tmp_path)]) == 0
    assert seen == [("03_lora", "lora-balanced"), ("04_evaluation", runs)]
    printed = capsys.readouterr().out
    assert (tmp_path / "tiny" / "lora-plus" / "seed-0" / "adapter").exists()
    assert "\nlast-2-blocks" in printed and "\nLoRA r16, q k v o: lora-plus" in printed


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_settings_reach_the_notebooks_with_the_run_they_belong_to(tiny, register, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(execution, "execute", lambda sources, folder, _: seen.update({folder: sources}))
    register(tiny)
    line = ["tiny", "--runs", "lora-balanced,dora", "--outputs", str(tmp_path)]
    given = ["--set", "dora.epochs=3", "--set", "lora-balanced.r=2", "--set", "num_beams=2", "--set", "dora.r=16"]
    assert cli.main([*line, *given]) == 0
    name = "tiny-num_beams=2-dora.epochs=3-lora-balanced.r=2"
    [(folder, sources)] = seen.items()
    assert folder == tmp_path / name / "notebooks" and len(sources) == 2
    for parameters in sources.values():
        again = experiments.experiment("tiny", settings=parameters["SETTINGS"], runs=["zero-shot"])
        assert again.name == name
    made = runs.read(tmp_path / name / "dora" / "seed-0")
    assert made.config.settings["epochs"] == 3 and made.config.generation["num_beams"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "full.epochs=2", "--runs", "zero-shot,lora-balanced"], "changes full, which is not asked for"),
        (["--set", "learning_rate=1e-3"], "name one, as full.learning_rate=0.001"),
        (["--report-to", "tensorboard,wanda"], "--report-to wanda: allowed are tensorboard, wandb, mlflow"),
        (["--report-to", "trackio"], "--report-to trackio: the package is missing. `uv pip install trackio`"),
    ],
)
def test_settings_that_cannot_be_used_are_said_before_any_work(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else name)
    monkeypatch.setattr(data, "load", None)
    assert cli.main(["quickstart", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", notebooks.NOTEBOOKS)
def test_what_a_command_line_leaves_out_is_what_notebooks_say(name):
    taught = ",".join(experiments.EXPERIMENTS["quickstart"].runs)
    defaults = {
        "EXPERIMENT": "quickstart", "RUNS": taught, "MODEL": None, "DATASET": None, "LIMIT": None,
        "SEED": 0, "FORCE": False, "OUTPUTS": "../outputs",
    }  # fmt: skip
    known = papermill.inspect_notebook(str(data.ROOT / "notebooks" / f"{name}.ipynb"))
    said = {key: ast.literal_eval(entry["default"]) for key, entry in known.items()}
    assert len(said.keys() & defaults.keys()) >= 6
    assert all(said[key] == defaults[key] for key in said.keys() & defaults.keys())


def test_score_by_id_whatever_the_order(tiny_data, tmp_path):
    references = {row["id"].rpartition("_")[0]: row["summary"] for row in tiny_rows(5, 3, start=20)}
    path = write_csv(tmp_path / "p.csv", ["id", "prediction"], list(references.items())[::-1])
    done = forked.command("score", path, "--dataset", tiny_data)
    assert done.returncode == 0 and "ROUGE-1" in done.stdout and "refs:mean3" in done.stdout
    assert json.loads(forked.command("score", path, "--dataset", tiny_data, "--json").stdout)["rouge1"] > 0.7


@pytest.mark.parametrize(
    "header, rows, said",
    [
        (["id", "prediction"], [["d_20", "a"]], ["missing", "4 ids", "d_21"]),
        (["id", "prediction"], [[f"d_{n}", "a"] for n in (20, 21, 22, 23, 24, 24)], ["repeated", "d_24"]),
        (["id", "prediction"], [[f"d_{n}", "a"] for n in (20, 21, 22, 23, 24, 99)], ["unknown", "d_99"]),
        (["id", "prediction"], [[f"d_{n}", " " if n == 22 else "a"] for n in range(20, 25)], ["empty", "1 id", "d_22"]),
        (["id", "summary"], [["d_20", "a"]], ["--column", "'prediction'", "id, summary"]),
        (["prediction"], [["a"], ["b"]], ["2 rows", "15 references"]),
    ],
)
def test_predictions_that_do_not_fit_are_counted_and_named(tiny_data, tmp_path, capsys, header, rows, said):
    path = write_csv(tmp_path / "p.csv", header, rows)
    assert cli.main(["score", str(path), "--dataset", str(tiny_data)]) == 1
    printed = capsys.readouterr().err
    assert all(word in printed for word in said), printed


def strict_json(text):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("form", ["jsonl", "JSONL", "CSV", "tsv"])
def test_json_of_one_dialogue_has_null_for_what_nobody_knows(form, tmp_path, capsys):
    for split in data.SPLITS:
        write_jsonl(tmp_path / f"{split}.jsonl", [{"id": "a", "dialogue": "A: Hi.", "summary": "They met today."}])
    path = tmp_path / f"p.{form}"
    if form.lower() == "jsonl":
        write_jsonl(path, [{"id": "a", "prediction": "They met."}])
    else:
        path.write_text(
            "id,prediction\na,They met.\n".replace(",", "\t" if form == "tsv" else ";"), encoding="utf-8-sig"
        )
    line = [str(path), "--dataset", str(tmp_path)]
    assert cli.main(["score", *line, "--json"]) == 0
    scores = strict_json(capsys.readouterr().out)
    assert (scores["rouge1"], scores["rouge1_low"], scores["rouge1_high"]) == (0.8, None, None)
    assert cli.main(["score", *line]) == 0 and "0.800 [–]" in capsys.readouterr().out
    (tmp_path / "q.jsonl").write_text('{"id": "a", "prediction": "They left."}', encoding="utf-8")
    assert cli.main(["compare", str(tmp_path / "q.jsonl"), *line]) == 0
    printed = capsys.readouterr().out
    assert "too few to say" in printed and "as good as" not in printed


def test_a_file_that_holds_no_rows_is_named(tiny_data, tmp_path, capsys):
    (tmp_path / "p.json").write_text("[]", encoding="utf-8")
    assert cli.main(["score", str(tmp_path / "p.json"), "--dataset", str(tiny_data)]) == 1
    assert ".csv, .tsv, .jsonl" in capsys.readouterr().err


def test_scores_of_other_scripts_have_a_signature_of_their_own(tmp_path, capsys):
    rows = [{"id": str(n), "dialogue": f"A: {n}", "summary": f"Борис ждёт {n} дней."} for n in range(6)]
    for split in data.SPLITS:
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    write_jsonl(tmp_path / "p.jsonl", [{"id": row["id"], "prediction": row["summary"]} for row in rows])
    line = ["score", str(tmp_path / "p.jsonl"), "--dataset", str(tmp_path)]
    assert cli.main(line) == 0
    printed = capsys.readouterr().out
    assert "1.000 [1.000, 1.000]" in printed and "|stem:yes|tok:unicode|refs:mean1|" in printed


@pytest.mark.parametrize(
    ("split", "old", "new", "knows_splits"),
    [
        ("test", "", "", True),  # its rows in another order
        ("test", "I left number 20", "I left number 99", True),  # in a dialogue
        ("test", "forgot", "lost", True),  # in references
        ("validation", "", "", True),
        ("train", "Ann", "Iris", True),
        ("test", "", "", False),
        ("test", "forgot", "lost", False),
    ],
)
def test_a_run_is_scored_against_its_own_data_alone(
    split, old, new, knows_splits, made_once, tiny_data, tmp_path, monkeypatch, capsys
):
    run, other = (made_once("llama", name, tmp_path / "outputs") for name in ("full", "zero-shot"))
    if not knows_splits:  # as records of earlier versions
        for path in (run.folder / "config.json", other.folder / "config.json"):
            content = json.loads(path.read_text())
            del content["split_fingerprints"]
            path.write_text(json.dumps(content))
    run, folder = runs.read(run.folder), shutil.copytree(tiny_data, tmp_path / "data")
    scored = ["score", str(run.folder), "--dataset", str(folder), "--json"]
    capsys.readouterr()
    assert cli.main(scored) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["rougeL"] == pytest.approx(run.metrics["rougeL"], abs=1e-6)

    text = (folder / f"{split}.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    (folder / f"{split}.jsonl").write_text(text.replace(old, new) if old else "".join([*lines[3:], *lines[:3]]))
    changed = data.load_source(str(folder))
    monkeypatch.setattr(trained.study, "load_run", None)  # it is refused before a model is loaded
    more = ["--dataset", str(folder)]
    commands = [scored, ["compare", str(run.folder), str(other.folder), *more]]
    for line in (*commands, ["likelihood", str(run.folder), *more], ["mbr", str(run.folder), *more]):
        assert cli.main(line) == 1
        said = capsys.readouterr().err
        assert f"not the data that {tmp_path / 'outputs' / 'tiny'}" in said and "--dataset" in said
        assert (f"(changed: {split})" in said) == knows_splits
    with pytest.raises(DataError, match="not the data"):
        runs.require_data(run, changed)
    if split == "test" and (knows_splits or not old):  # the ids are others, or the fingerprint is
        with pytest.raises(DataError, match="changed: test" if old else "test dialogues"):
            report.predictions(run, changed["test"])

    scored[1] = str(run.folder / "predictions.csv")  # a file is scored against what is named
    assert cli.main(scored) == 0
    assert (json.loads(capsys.readouterr().out)["rougeL"] != before["rougeL"]) == (old == "forgot")


def test_runs_of_different_data_are_not_compared(made_once, tiny_models, tiny_data, tmp_path, capsys):
    one = made_once("llama", "zero-shot", tmp_path / "outputs")
    folders = {split: shutil.copytree(tiny_data, tmp_path / split) for split in ("train", "test")}
    for split, folder in folders.items():
        text = (folder / f"{split}.jsonl").read_text()
        (folder / f"{split}.jsonl").write_text(text.replace("forgot", "lost"))
    others = {
        split: study.run(
            tiny_experiment(tiny_models["llama"], folder), METHODS["zero-shot"], outputs=tmp_path / f"of-{split}"
        )
        for split, folder in folders.items()
    }
    assert cli.main(["compare", str(one.folder), str(others["train"].folder)]) == 0  # each of its own, the same test
    assert cli.main(["compare", str(one.folder), str(others["test"].folder)]) == 1
    assert "different test dialogues" in capsys.readouterr().err
    with pytest.raises(DataError, match="different data"):
        report.results([one, others["train"]])


@pytest.mark.parametrize(("name", "from_file"), [("full", True), ("lora-efficient", False)])
def test_summarize_uses_the_trained_model(name, from_file, family_name, made_once, tmp_path, monkeypatch, capsys):
    run = made_once(family_name, name, tmp_path)
    dialogue = tiny_rows(1, start=20)[0]["dialogue"]
    for end, start in (("\n", ""), ("\r\n", "\ufeff"), ("\r", ""), ("\u2028", "\n")):
        content = (start + dialogue.replace("\n", end) + end).encode()
        (tmp_path / "dialogue.txt").write_bytes(content)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        capsys.readouterr()
        assert cli.main(["summarize", str(run.folder), str(tmp_path / "dialogue.txt") if from_file else "-"]) == 0
        printed = capsys.readouterr()
        assert printed.out.strip() == run.predictions["prediction"][0].strip()
        learnt = f"trained on {run.config.dialogues['train']} dialogues of {run.config.dataset}"
        assert printed.err == f"{run.config.experiment}/{name}, seed 0: {learnt}\n"
    (tmp_path / "long.txt").write_text("\n".join([dialogue] * 30), encoding="utf-8")
    assert cli.main(["summarize", str(run.folder), str(tmp_path / "long.txt")]) == 0
    tokens = re.search(
        r"longer than the model takes: (\d,\d{3}) tokens .* of 256\. The end was", capsys.readouterr().err
    )[1]
    family = study.load_run(run).family
    assert int(tokens.replace(",", "")) == len(family.tokenizer(family.render("\n".join([dialogue] * 30)))["input_ids"])


def test_summarize_an_empty_dialogue(family_name, made_once, tmp_path, monkeypatch, capsys):
    run = made_once(family_name, "zero-shot", tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    assert cli.main(["summarize", str(run.folder), "-"]) == 1
    assert "empty" in capsys.readouterr().err


def test_missing_summaries_can_be_scored_as_empty(tiny_data, tmp_path, capsys):
    path = write_csv(tmp_path / "p.csv", ["id", "prediction"], [["d_20", "a b"], ["d_21", ""]])
    line = ["score", str(path), "--dataset", str(tiny_data)]
    assert cli.main(line) == 1
    said = capsys.readouterr().err
    assert "missing: 3 ids (d_22, d_23, d_24)" in said and "empty: 1 id (d_21)" in said and "--allow-missing" in said
    assert cli.main([*line, "--allow-missing"]) == 0
    assert "4 summaries are missing or empty and were scored as empty" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    other = shutil.copy(path, tmp_path / "other")
    assert cli.main(["compare", str(path), str(other), *line[2:], "--allow-missing"]) == 0
    said = capsys.readouterr().out
    assert "8 summaries are missing" in said and f"{path}: p" in said and f"{other}: p" in said  # told apart


def test_summaries_of_some_references_alone_are_counted_as_missing(tiny_data, tmp_path, capsys):
    test = data.load_source(str(tiny_data))["test"]
    rows = [[ids[0], texts[0]] for ids, texts in zip(test["row_ids"], test["summaries"], strict=True)]
    path = write_csv(tmp_path / "p.csv", ["id", "prediction"], rows)
    line = ["score", str(path), "--dataset", str(tiny_data), "--allow-missing", "--json"]
    assert cli.main(line) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 10  # of 15


def test_a_run_has_summaries_of_the_test_dialogues_alone(made_once, tmp_path, capsys):
    run = made_once("llama", "zero-shot", tmp_path)
    for line in (["score", str(run.folder)], ["compare", str(run.folder), str(run.folder)]):
        assert cli.main([*line, "--split", "validation"]) == 1
        assert "A run has summaries of the test dialogues, none of validation" in capsys.readouterr().err


def test_score_and_compare_print_the_figures_of_the_notebook(capsys):
    test = data.load(experiments.experiment("quickstart"))["test"]
    records = [run for run in runs.collect("quickstart", "nowhere") if run.config.settings and run.config.seed == 0]
    systems = comparison.all_systems(records, test)
    places = [str(run.folder) for run in records]
    assert cli.main(["score", places[0], "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["rougeL"] == pytest.approx(records[0].metrics["rougeL"], abs=1e-6) and scored["dialogues"] == 48
    assert [scored["rougeL_low"], scored["rougeL_high"]] == pytest.approx(systems[1].interval("rougeL"), abs=1e-6)
    assert cli.main(["compare", *places]) == 0
    printed = capsys.readouterr().out
    ours = [one for one in systems if one.kind == "run"]
    assert comparison.pairwise(ours, "rougeL").to_string() in printed and report.signature(test) in printed
    shown = comparison.leaderboard(systems, test).loc["full (reference)", "ROUGE-L"]
    assert shown in printed
    assert cli.main(["compare", places[0]]) == 1
    assert "two runs" in capsys.readouterr().err
