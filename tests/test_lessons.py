"""The lessons around the notebooks: exercises, copies for a class, what a card holds."""

import json
import re

import nbformat
import pytest
import torch
from test_notebooks import GPU, SWEEP
from transformers import AutoConfig, AutoModelForCausalLM

from dialogue_summarization import classroom, data, experiments, hardware, measured, memory, models, runs
from dialogue_summarization.cli import NOTEBOOKS

FOLDER = data.ROOT / "notebooks"
GUIDE = (FOLDER / "README.md").read_text("utf-8")
LENGTHS = measured.LENGTHS["smollm2"]


def test_a_class_gets_the_exercises_without_answers_and_outputs(tmp_path):
    written = classroom.copy(tmp_path / "class")
    assert [path.stem for path in written] == [*NOTEBOOKS, GPU, SWEEP]
    for path in written:
        ours, theirs = (nbformat.read(one, as_version=4) for one in (FOLDER / path.name, path))
        assert "details>" not in path.read_text("utf-8")
        (before,), (after,) = (
            [cell.source for cell in notebook.cells if cell.source.startswith("## Exercises")]
            for notebook in (ours, theirs)
        )
        assert before.count("<details>") == 3 and all(f"**{number}.**" in after for number in (1, 2, 3))
        code = [[cell for cell in notebook.cells if cell.cell_type == "code"] for notebook in (ours, theirs)]
        assert [cell.source for cell in code[0]] == [cell.source for cell in code[1]]
        assert not [cell for cell in code[1] if cell.outputs or cell.execution_count]
    with pytest.raises(FileExistsError, match="01_zero_shot"):
        classroom.copy(tmp_path / "class")


def table(name):
    """The cells of a table of the guide, a list a row."""
    block = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", GUIDE, re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")]
    return rows[2:]


@pytest.mark.parametrize("name", ["quickstart", "smollm2-dialogsum"])
def test_times_and_memory_are_those_of_the_records(name):
    expected = []
    for run in experiments.STUDY_RUNS:
        folder = runs.OUTPUTS / "reference" / name / run / "seed-0"
        found = json.loads((folder / "metrics.json").read_text("utf-8"))
        trained = "train_seconds" in found
        expected.append([
            f"`{run}`", f"{found['train_seconds']:.0f}" if trained else "–", f"{found['generate_seconds']:.0f}",
            f"{found['peak_memory_bytes'] / 1e9:.1f}" if trained else "–",
            f"{found['generate_memory_bytes'] / 1e9:.1f}",
        ])  # fmt: skip
        device = json.loads((folder / "environment.json").read_text("utf-8"))["device"]
        assert device in GUIDE
    assert [row[1:] for row in table(name)] == expected


def test_what_small_cards_hold_and_take_is_what_is_predicted():
    config = AutoConfig.from_pretrained(models.resolve(experiments.PACKAGED_MODEL))
    study, expected = experiments.experiment("smollm2-dialogsum"), []
    for run in experiments.STUDY_RUNS[1:]:
        method = experiments.method(run)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            layers = base.num_parameters() - base.get_input_embeddings().weight.numel()
            network = models.adapt(base, method)
        tokens, cells = LENGTHS.mean * 12_460 * study.settings_for(method).epochs, []
        for (card, rate), gib in zip(hardware.FP32_RATES.items(), (6, 16), strict=True):
            assert card.endswith(f"{gib} GB") and f"{card.partition(',')[0]} ({rate / 1e12} TFLOP/s)" in GUIDE
            plan = memory.plan(gib * memory.GIB, 32, memory.shape_of(network), LENGTHS)
            seconds = hardware.least_seconds(
                layers, tokens, rate, every_weight=run == "full", checkpointing=plan.checkpointing
            )
            cells.append(
                f"{plan.micro_batch} × {plan.accumulation}, {plan.bytes / 1e9:.1f} GB, {seconds / 60:.0f} min or more"
            )
        expected.append([f"`{run}`", *cells])
    assert table("small cards") == expected


def test_the_least_time_by_hand():
    seconds = hardware.least_seconds(100, 1000, 1e4, every_weight=True, checkpointing=False)
    assert seconds == pytest.approx(6 * 100 * 1000 / 1e4)
    assert hardware.least_seconds(100, 1000, 1e4, every_weight=False, checkpointing=True) == pytest.approx(seconds)
