"""The Python of docs/using_a_model.md: on what `study export` writes, each block in a process of its own."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import tiny_experiment

from dialogue_summarization import data, experiments, generation, models, study
from dialogue_summarization.commands import export
from dialogue_summarization.experiments import METHODS
from dialogue_summarization.prompts import BRIEF

OURS, WHOLE, ADAPTER = re.findall(
    r"```python\n(.*?)```", (data.ROOT / "docs" / "using_a_model.md").read_text("utf-8"), re.DOTALL
)


def run(code, folder):
    """What a block prints; nothing of ours is there for it."""
    code = f"import sys\nsys.modules['dialogue_summarization'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def texts(code):
    """The dialogue and the prompt in a block."""
    values = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("dialogue", "prompt"):
            exec(ast.unparse(node), values)
    return values["dialogue"], values["prompt"]


def test_our_own_interface(tiny, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(experiments.EXPERIMENTS, "quickstart", tiny)
    monkeypatch.setattr(study.run, "__kwdefaults__", {"outputs": tmp_path, "force": False})
    exec(OURS, {})
    assert "lora-balanced" in capsys.readouterr().out


@pytest.mark.parametrize("method, folder", [("full", "my-model"), ("lora-balanced", "my-merged")])
def test_a_whole_model(tiny_models, tiny_data, made_once, tmp_path, method, folder):
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, prompt=BRIEF)
    made = made_once("llama", method, tmp_path / "outputs")
    export.export(made, tmp_path / folder, merge=method != "full")
    bundle = models.load_model(experiment, made.weights)
    dialogue, prompt = texts(WHOLE)
    [wanted] = generation.summarize(bundle, [dialogue], experiment.generation, progress=False)
    assert prompt == bundle.family.render(dialogue) and "my-model" in WHOLE and wanted
    assert run(WHOLE.replace("my-model", folder), tmp_path) == wanted


def test_an_adapter(tmp_path):
    """On the packaged model, of which the block names the file; the adapter is a random one."""
    experiment = experiments.experiment("quickstart")
    short = replace(experiment.generation, max_new_tokens=12)
    bundle = models.load_model(experiment)
    bundle = replace(bundle, model=models.apply_method(bundle.model, METHODS["lora-balanced"]).eval())
    torch.manual_seed(0)
    for name, weights in bundle.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    dialogue, prompt = texts(ADAPTER)
    [wanted] = generation.summarize(bundle, [dialogue], short, progress=False)
    assert prompt == bundle.family.render(dialogue)
    models.save(bundle, tmp_path / "my-adapter", "SmolLM2-135M-Instruct")
    generation.generation_config(bundle, short).save_pretrained(tmp_path / "my-adapter")
    assert run(ADAPTER, tmp_path) == wanted
