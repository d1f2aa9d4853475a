"""Whether a folder holds a model with its own tokenizer, and whether that knows the texts: asked before any work."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from .errors import DataError, ModelError

_LEAST_KNOWN = 0.8
_TOKENIZER = "tokenizer.json, tokenizer_config.json and chat_template.jinja, as far as there are"


def require_model(folder: Path) -> None:
    """Raise `ModelError` where a folder holds an adapter, a run, checkpoints or none, and say what to name instead."""
    if (folder / "adapter_config.json").exists():
        base = _read(folder / "adapter_config.json").get("base_model_name_or_path")
        merged = "a folder with the adapter merged into it (`study export RUN FOLDER --merge`)"
        raise ModelError(f"{folder} holds an adapter, not a whole model. Name its base, {base}, or {merged}.")
    if "model_type" not in _read(folder / "config.json"):
        inside = ", ".join(sorted({path.parent.name for path in folder.glob("*/*config.json")}))
        hint = f" Name a folder in it: {inside}." if inside else ""
        raise ModelError(f"{folder} holds no model: config.json is missing, damaged or not a model's.{hint}")


def require_tokenizer(folder: Path) -> None:
    """Raise `ModelError` where a folder has no tokenizer: transformers would make one up that knows no word."""
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer.json", "*.model", "vocab.*")):
        base = _read(folder / "config.json").get("_name_or_path") or "the folder or Hub model that it was trained from"
        raise ModelError(f"{folder} holds a model without its tokenizer: copy {_TOKENIZER}, into it, from {base}.")
    if not (folder / "tokenizer.json").exists() and any(folder.glob("*.model")) and not find_spec("sentencepiece"):
        install = "`uv pip install sentencepiece`, or with pip: pip install sentencepiece"
        raise ModelError(f"The tokenizer in {folder} takes a package to read: {install}.")


def require_own_tokenizer(
    folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    """Raise `ModelError` where a tokenizer is not the model's, or knows nothing of a text."""
    given = config.eos_token_id, _read(folder / "generation_config.json").get("eos_token_id")
    ends = {end for some in given for end in (some if isinstance(some, list) else [some]) if end is not None}
    if _known_part(tokenizer, [text]) < _LEAST_KNOWN:
        wrong = "knows no word of the prompt"
    elif not 0.9 * config.vocab_size < len(tokenizer) <= config.vocab_size:
        wrong = f"knows {len(tokenizer):,} tokens, the model {config.vocab_size:,}"
    elif tokenizer.eos_token_id is None or (ends and tokenizer.eos_token_id not in ends):
        wrong = f"ends texts with token {tokenizer.eos_token_id}, the model with {', '.join(map(str, ends))}"
    else:
        return
    raise ModelError(f"The tokenizer in {folder} is incomplete or another's: it {wrong}. Copy its own: {_TOKENIZER}.")


def require_known_script(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Raise `DataError` where a tokenizer does not know the script of texts."""
    if texts and (known := _known_part(tokenizer, texts)) < _LEAST_KNOWN:
        what = f"{known:.0%} of the characters in the texts, which begin {texts[0][:40]!r}"
        remedy = "Take a model for their script: Qwen's and SmolLM2's know every character."
        raise DataError(f"The model's tokenizer knows {what}. {remedy}")


def _known_part(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Of the characters in a text, the fraction that is not lost as `<unk>` or as nothing: the mean over texts."""
    unknown = tokenizer.unk_token or "\0"
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    parts = []
    for known, text in zip(tokenizer.batch_decode(ids), texts, strict=True):
        lengths = [len("".join(one.replace(unknown, "").split())) for one in (known, text)]
        parts.append(lengths[0] / lengths[1] if lengths[1] else 1.0)
    return sum(parts) / len(parts)


def _read(path: Path) -> dict:
    """A JSON file's content; nothing where there is no such file, or it is damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
