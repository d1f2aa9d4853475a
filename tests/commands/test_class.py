"""Copies of the notebooks for a class: without outputs, and exercises without their answers."""

import shutil

import forked
import nbformat

from dialogue_summarization import data
from dialogue_summarization.commands import cli
from dialogue_summarization.commands.notebooks import NOTEBOOKS

FOLDER = data.ROOT / "notebooks"
OTHERS = ["04b_appendix", "05_gpu_optimization", "06_lora_against_full"]


def test_a_class_gets_the_exercises_without_answers_and_outputs(tmp_path, capsys):
    assert cli.main(["class", str(tmp_path / "class")]) == 0
    written = sorted((tmp_path / "class").iterdir())
    assert [path.stem for path in written] == [*NOTEBOOKS, *OTHERS]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in written]
    for path in written:
        ours, theirs = (nbformat.read(one, as_version=4) for one in (FOLDER / path.name, path))
        assert "details>" not in path.read_text("utf-8")
        before, after = (
            "".join(cell.source for cell in notebook.cells if cell.source.startswith("## Exercises"))
            for notebook in (ours, theirs)
        )
        count = 0 if path.stem == "04b_appendix" else 3
        assert bool(before.count("<details>")) == bool(count)  # some exercises are open
        assert sum(f"**{number}.**" in after for number in (1, 2, 3)) == count
        code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (ours, theirs)]
        assert [cell.source for cell in code[0]] == [cell.source for cell in code[1]]
        assert not [cell for cell in code[1] if cell.outputs or cell.execution_count]
    assert cli.main(["class", str(tmp_path / "class")]) == 1
    assert f"{tmp_path / 'class'} is there already" in capsys.readouterr().err


# In a process that has imported our package from here: it and what imports it are imported anew.
RUN = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] in ("dialogue_summarization", "helpers")]:
    del sys.modules[name]
sys.path[:0] = {paths}
from helpers import tiny_experiment
from dialogue_summarization import data, runs, study
from dialogue_summarization.experiments import METHODS
run = study.run(tiny_experiment({model!r}, {dataset!r}), METHODS["zero-shot"])
print("made:", run.folder.relative_to(data.ROOT).as_posix(), runs.read(run.folder).environment["commit"])
print(study.__file__)
"""


def test_a_download_works_in_a_folder_with_a_blank_and_an_umlaut_and_without_git(
    tiny_models, tiny_data, tmp_path, monkeypatch
):
    clone = tmp_path / "Mein Ordner ü"
    shutil.copytree(data.ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.delenv("STUDY_COMMIT", raising=False)
    paths = [str(clone / "src"), str(data.ROOT / "tests")]
    code = RUN.format(paths=paths, model=str(tiny_models["llama"]), dataset=str(tiny_data))
    done = forked.python(code, cwd=clone)
    made = ["made: outputs/tiny/zero-shot/seed-0 unknown", str(clone / "src" / "dialogue_summarization" / "study.py")]
    assert done.stdout.splitlines()[-2:] == made, done.stderr
