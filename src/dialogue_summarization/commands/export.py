"""`study export`: a run's model or adapter with a model card, whose code is run with transformers and peft alone."""

import os
import re
import subprocess
import sys
import tempfile
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard
from jinja2 import Template

from .. import data, hardware, models, report, runs, study
from ..disk import require_writable
from ..errors import ConfigurationError, ModelError
from ..experiments import SAMPLE_DATA
from ..generation import BatchGenerator, generation_config
from . import gguf_file
from .trained import announce, find_trained

TEMPLATE = Path(__file__).with_name("card_template.md")
DIALOGUE = "#Person1#: Did you bring the map?\n#Person2#: No, I left it at home."  # the card's example


def export_command(options: Namespace) -> None:
    """Export a run, and print what was written. Raises what `export` raises."""
    with hardware.quiet():
        run, folder = find_trained(options.run)[0], options.folder.expanduser()
        announce(run)
        export(run, folder, merge=options.merge, gguf=options.gguf)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}.")
    print("It loads with transformers and peft alone, and writes what the run's own model writes.")


def export(run: runs.Run, folder: Path, *, merge: bool = False, gguf: str | None = None) -> None:
    """Write a run's model, or its adapter, into a new folder, and check that it loads without this package.

    `merge` writes a whole model with the adapter in its weights, `gguf` ("f16" or "q8_0") the same as one GGUF file. An
    adapter on a quantized base is checked, and merged, on that base in fp32.

    Raises `ConfigurationError` where there are no weights, the folder is taken, or nothing can be merged. Raises
    `ModelError` where the base model is missing, or what was written does not load or writes something else.
    """
    asked, settings = run.config, run.experiment.generation
    if run.weights is None:
        maker = f"`study {asked.experiment}` makes them"
        raise ConfigurationError(f"No weights of {run.folder} are here: it trained nothing, or {maker}.")
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already. Name a new folder.")
    require_writable(folder.parent, "Name another folder.")
    study.require_same_base(run)
    bundle = models.load_model(run.experiment, run.weights)
    if merge or (gguf and asked.peft):
        if not asked.peft or bundle.model.active_peft_config.is_prompt_learning:
            what = "virtual tokens, which cannot be merged" if asked.peft else "a whole model; nothing is to be merged"
            raise ConfigurationError(f"{run.folder} holds {what}: leave {'--gguf' if gguf else '--merge'} out.")
        bundle = replace(bundle, model=bundle.model.merge_and_unload())
    size = settings.no_repeat_ngram_size or None
    config = generation_config(bundle, settings, no_repeat_ngram_size=size, disable_compile=None)
    models.base_model(bundle.model).generation_config = config
    is_adapter = bool(asked.peft) and not (merge or gguf)
    card = model_card(run, bundle, is_adapter=is_adapter, gguf=f"model-{gguf}.gguf" if gguf else None)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        target = Path(temporary) / "model"
        if gguf:
            target.mkdir()
            file = target / f"model-{gguf}.gguf"
            gguf_file.write(bundle, file, gguf, f"{asked.experiment} {run.name}")
            modelfile = gguf_file.modelfile(bundle, file.name, settings)
            (target / "Modelfile").write_text(modelfile, encoding="utf-8", newline="\n")
            dialogues = data.load_source(SAMPLE_DATA)["test"]["dialogue"][:10]
            same = gguf_file.check(bundle, file, gguf, dialogues)
            print(f"{file.name}: {same} of {len(dialogues)} dialogues get the model's own next token from it.")
        else:
            models.save(bundle, target, _public_name(asked.model))
        config.save_pretrained(target)
        card.save(target / "README.md")
        _check(card, target, run, bundle, is_exact=gguf != "q8_0")
        target.rename(folder)


def _public_name(source: str) -> str:
    folder = Path(source).expanduser()  # no path of this machine is exported
    return folder.resolve().name if folder.is_dir() else source


def model_card(run: runs.Run, bundle: models.ModelBundle, *, is_adapter: bool, gguf: str | None = None) -> ModelCard:
    """The model card, from the run's record alone."""
    template = Template(TEMPLATE.read_text(encoding="utf-8"), trim_blocks=True, lstrip_blocks=True)
    of_run = {"run": run, "bundle": bundle, "dialogue": DIALOGUE, "scores": report.results([run]).to_markdown()}
    names = {"base": _public_name(run.config.model), "dataset": _public_name(run.config.dataset)}
    kind = {"is_adapter": is_adapter, "gguf": gguf, "is_folder": Path(run.config.model).expanduser().is_dir()}
    return ModelCard(template.render(of_run | names | kind))


def _check(card: ModelCard, folder: Path, run: runs.Run, bundle: models.ModelBundle, is_exact: bool) -> None:
    """Run the model card's code in a process without network or GPU, and compare its summary. Raises `ModelError`."""
    code, base = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], models.local_snapshot(run.config.model)
    code = code.replace(f'BASE = "{_public_name(run.config.model)}"', f"BASE = {str(Path(base).resolve())!r}")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, encoding="utf-8", env=env)
    if done.returncode:
        raise ModelError(f"The exported files do not load by themselves: {done.stderr.strip().splitlines()[-1]}")
    [ids] = BatchGenerator(bundle, run.experiment.generation)([bundle.family.encode(DIALOGUE)])
    said, expected = done.stdout.strip(), bundle.tokenizer.decode(ids, skip_special_tokens=True).strip()
    if is_exact and said != expected:
        advice = f"Are transformers and peft of the versions in {run.folder / 'environment.json'}?"
        raise ModelError(f"The exported model writes {said!r} where the run's own writes {expected!r}. {advice}")
