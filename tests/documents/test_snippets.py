"""The Python in docs/using_a_model.md: on what `study export` writes, in a process that knows nothing of ours."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import forked
import pytest
import torch
from helpers import tiny_experiment

from dialogue_summarization import data, experiments, generation, models, study
from dialogue_summarization.commands import export
from dialogue_summarization.experiments import METHODS
from dialogue_summarization.prompts import BRIEF

PAGE = (data.ROOT / "docs" / "using_a_model.md").read_text("utf-8")
OURS, WHOLE, ADAPTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


# Each in a folder of its own; in one process, which imports what they import once. Nothing of ours is there for them.
RUN_EACH = """
import contextlib, functools, gguf, io, json, os, sys
sys.modules["dialogue_summarization"] = None
for name in ("GGUFReader", "get_tensor_name_map"):  # of one file transformers makes each several times
    setattr(gguf, name, functools.lru_cache(getattr(gguf, name)))
printed = {}
for folder, code in json.load(sys.stdin).items():
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, folder, "exec"), {"__name__": "__main__"})
    printed[folder] = said.getvalue().strip()
print(json.dumps(printed))
"""


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


def whole_model(folder, experiment, made):
    """The block on a whole model, for one that `study export` writes into a folder, and what our own model writes."""
    name = "my-model" if made.name == "full" else "my-merged"
    export.export(made, folder / name, merge=made.name != "full")
    bundle = models.load_model(experiment, made.weights)
    dialogue, prompt = texts(WHOLE)
    [wanted] = generation.summarize(bundle, [dialogue], experiment.generation, progress=False)
    assert prompt == bundle.family.render(dialogue) and "my-model" in WHOLE and wanted
    return WHOLE.replace("my-model", name), wanted


def adapter(folder):
    """The block on an adapter, for a random one on the packaged model, of which the block names the file."""
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
    models.save(bundle, folder / "my-adapter", "SmolLM2-135M-Instruct")
    generation.generation_config(bundle, short).save_pretrained(folder / "my-adapter")
    return ADAPTER, wanted


@pytest.fixture(scope="module")
def written(tiny_models, tiny_data, made_once, tmp_path_factory):
    """What the blocks print, and what our own models write."""
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, prompt=BRIEF)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("full", "lora-balanced", "adapter")}
    codes = {"adapter": adapter(folders["adapter"])}
    for name in ("full", "lora-balanced"):
        with pytest.MonkeyPatch.context() as patch:  # that an export loads by itself is seen below
            patch.setattr(export.subprocess, "run", forked.subprocess_run)
            codes[name] = whole_model(folders[name], experiment, made_once("llama", name, folders[name] / "outputs"))
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps({str(folders[name]): code for name, (code, _) in codes.items()}),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    return {name: (printed[str(folders[name])], wanted) for name, (_, wanted) in codes.items()}


@pytest.mark.parametrize("name", ["full", "lora-balanced", "adapter"])
def test_a_block_writes_what_our_own_model_writes(written, name):
    printed, wanted = written[name]
    assert printed == wanted
