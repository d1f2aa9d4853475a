"""Copies of the notebooks for a class: without outputs, and exercises without their answers."""

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
