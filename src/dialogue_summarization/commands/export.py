"""`study export`: a run's model or adapter as a folder that others can use, with tokenizer, settings and a model card.

The card's own code is run in a fresh process, with transformers and peft alone, before the folder is there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Template

from .. import hardware, models, packaged, runs
from ..errors import ConfigurationError, ModelError
from ..experiments import DIALOGSUM, PACKAGED_MODEL, SAMPLE_DATA
from ..generation import generation_config
from ..intervals import interval
from ..models import ModelBundle, base_model
from ..report import HEADINGS, with_interval
from ..rouge import TYPES
from .trained import find_trained

TEMPLATE = Path(__file__).with_name("card_template.md")
DIALOGUE = "#Person1#: Did you bring the map?\n#Person2#: No, I left it at home."  # the card's example
PACKAGED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DATA = {
    SAMPLE_DATA: "the sample dialogues of this project, CC0",
    DIALOGSUM: "DialogSum (Chen et al. 2021), CC BY-NC-SA 4.0: not for commercial use",
}


def export_command(options: Namespace) -> None:
    """Export a run and print what was written. Raises what `export` raises."""
    with hardware.quiet():
        folder = export(find_trained(options.run)[0], options.folder.expanduser(), merge=options.merge)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}.")
    print("It loads with transformers and peft alone, and writes what the run's own model writes.")


def export(run: runs.Run, folder: Path, *, merge: bool = False) -> Path:
    """Write a run's model, or its adapter, into a new folder, and check that it loads without this package.

    `merge` writes a whole model with the adapter in its weights. An adapter on a quantized base is checked, and merged,
    on that base in fp32.

    Raises:
        ConfigurationError: The run has no weights, the folder is taken, or there is nothing to merge.
        ModelError: The base model is not there, or what was written does not load, or writes something else.
    """
    asked = run.config
    if asked.settings is None:
        raise ConfigurationError(f"{run.folder} trained nothing: there is only its base model, {asked.model}.")
    if run.weights is None:
        raise ConfigurationError(f"The weights of {run.folder} are not there: `study {asked.experiment}` makes them.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already. Name a new folder.")
    bundle = models.load_model(run.experiment, run.weights)
    if merge:
        if not asked.peft or bundle.model.active_peft_config.is_prompt_learning:
            what = "virtual tokens, which cannot be merged" if asked.peft else "a whole model; nothing is to be merged"
            raise ConfigurationError(f"{run.folder} holds {what}: leave --merge out.")
        bundle = replace(bundle, model=bundle.model.merge_and_unload())
    settings = run.experiment.generation
    overrides = {"no_repeat_ngram_size": settings.no_repeat_ngram_size or None, "disable_compile": None}
    config = generation_config(bundle, settings, **overrides)
    base_model(bundle.model).generation_config = config
    card = model_card(run, bundle, is_adapter=bool(asked.peft) and not merge)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        target = Path(temporary) / "model"
        models.save(bundle, target, _public_name(asked.model))
        config.save_pretrained(target)
        card.save(target / "README.md")
        _check(card, target, run, bundle)
        if folder.exists():
            folder.rmdir()
        shutil.move(target, folder)
    return folder


def _public_name(source: str) -> str:
    """A Hub id or the packaged model's name; of a folder its last part, since no path of this machine is exported."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


def model_card(run: runs.Run, bundle: ModelBundle, *, is_adapter: bool) -> ModelCard:
    """The card, from the run's record alone."""
    model, dataset = run.config.model, run.config.dataset
    is_packaged, is_folder = model == PACKAGED_MODEL, Path(model).expanduser().is_dir()
    f1 = {name: run.scores[name].to_numpy() for name in TYPES}
    template = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    text = template.render(
        run=run,
        is_adapter=is_adapter,
        bundle=bundle,
        dialogue=DIALOGUE,
        base=_public_name(model),
        gguf=packaged.gguf().name if is_packaged else None,
        hub_id=None if is_folder else PACKAGED_HUB_ID if is_packaged else model,
        dataset=_public_name(dataset),
        data=DATA.get(dataset),
        means={name: f"{scores.mean():.4f}" for name, scores in f1.items()},
        scores={HEADINGS[name]: with_interval(scores.mean(), interval(scores)) for name, scores in f1.items()},
        version=version("rouge-score"),
    )
    return ModelCard(text.lstrip())


def _check(card: ModelCard, folder: Path, run: runs.Run, bundle: ModelBundle) -> None:
    """Run the card's code in a fresh process without a network or GPU, and compare its summary. Raises `ModelError`."""
    code, base = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], Path(run.config.model).expanduser()
    if base.is_dir():
        code = code.replace(f'BASE = "{_public_name(run.config.model)}"', f"BASE = {str(base.resolve())!r}")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    if done.returncode:
        raise ModelError(f"The exported files do not load by themselves: {done.stderr.strip().splitlines()[-1]}")
    batch = bundle.family.collate([bundle.family.encode(DIALOGUE)])
    output = bundle.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    ids = bundle.family.generated_ids(output, batch["input_ids"].shape[1])[0]
    expected = bundle.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if done.stdout.strip() != expected:
        raise ModelError(
            f"The exported model writes {done.stdout.strip()!r} where the run's own writes {expected!r}. "
            f"Are transformers and peft of the versions in {run.folder / 'environment.json'}?"
        )
