"""A decoder-only model as a GGUF file, for llama.cpp and Ollama: weights, tokenizer and chat template in one."""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from .. import hardware
from ..errors import ConfigurationError, ModelError
from ..experiments import Generation
from ..models import ModelBundle

# How weights are stored, and how far below the model's best logit the next token of a right file may lie: rounding to
# 16 bits swaps near-ties alone.
KINDS = {"f16": (gguf.GGMLQuantizationType.F16, 0.05), "q8_0": (gguf.GGMLQuantizationType.Q8_0, 1.0)}
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
# How llama.cpp calls the way in which a byte-level BPE splits text, by what tells them apart in tokenizer.json.
PRE_TOKENIZERS = {'"Digits"': "smollm", "\\\\p{N}{1,3}": "llama-bpe", "\\\\p{N}": "qwen2", '"ByteLevel"': "gpt-2"}
CONVERTER = "llama.cpp's own convert_hf_to_gguf.py, on an export with --merge, may have it."


def write(bundle: ModelBundle, path: Path, kind: str, name: str) -> None:
    """Write a model, its tokenizer beside it. Raises `ConfigurationError` where no such file can be written."""
    config, model = bundle.model.config, bundle.model
    rope = getattr(config, "rope_parameters", None) or {}
    if config.model_type not in ARCHITECTURES or rope.get("rope_type") != "default":
        known = ", ".join(ARCHITECTURES)
        raise ConfigurationError(f"GGUF files are written of {known} with plain positions alone. {CONVERTER}")
    arch, heads = ARCHITECTURES[config.model_type], config.num_attention_heads
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind.upper()}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, bundle.tokenizer, config.vocab_size, path.parent)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for own_name, weight in model.state_dict().items():
        if own_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values, stored = weight.float().numpy(), gguf.GGMLQuantizationType.F32
        if config.model_type == "llama" and own_name.split(".")[-2] in ("q_proj", "k_proj"):
            values = _interleave(values, heads if "q_proj" in own_name else config.num_key_value_heads)
        if values.ndim > 1:
            stored = KINDS[kind][0] if kind == "f16" or values.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F16
        name_there = names.get_name(own_name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name_there, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: it rotates neighbouring pairs, transformers the halves of a head."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, folder: Path) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer_name(content["pre_tokenizer"])
    if content["model"]["type"] != "BPE" or pre is None:
        raise ConfigurationError(f"GGUF files are written with byte-level BPE tokenizers alone. {CONVERTER}")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, number in tokenizer.get_vocab().items():
        tokens[number], types[number] = token, gguf.TokenType.NORMAL
    for number, token in tokenizer.added_tokens_decoder.items():
        types[number] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    tokenizer.save_pretrained(folder)
    special = gguf.SpecialVocab(folder, load_merges=True, special_token_types=("bos", "eos", "pad"))
    special.add_special_token = {"bos": tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id}
    special.chat_template = tokenizer.chat_template
    special.add_to_gguf(writer, quiet=True)


def pre_tokenizer_name(content: object) -> str | None:
    """What llama.cpp calls a pre-tokenizer, given as in tokenizer.json; None if it is none of those known here."""
    text = json.dumps(content)
    return next((name for mark, name in PRE_TOKENIZERS.items() if mark in text), None)


def check(bundle: ModelBundle, path: Path, kind: str, dialogues: Sequence[str]) -> int:
    """Of how many dialogues a file, read by transformers, has the model's next token. Raises `ModelError` if wrong."""
    with hardware.quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
        written = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    gaps = []
    for dialogue in dialogues:
        ids = torch.tensor([bundle.family.encode(dialogue)["input_ids"]])
        with torch.no_grad():
            own, read = (model(input_ids=ids).logits[0, -1] for model in (bundle.model, written))
        gaps.append(float(own.max() - own[read.argmax()]))
    if max(gaps) > KINDS[kind][1]:
        raise ModelError(f"{path.name} was written wrongly: its next token lies {max(gaps):.2f} below the model's own.")
    return gaps.count(0)


def modelfile(bundle: ModelBundle, file: str, generation: Generation) -> str:
    """What Ollama needs besides: the prompt that the model learned, with the dialogue in it, and greedy search."""
    context = bundle.family.max_prompt_tokens + generation.max_new_tokens
    settings = {"temperature": 0, "repeat_penalty": 1, "num_predict": generation.max_new_tokens, "num_ctx": context}
    settings["stop"] = f'"{bundle.tokenizer.eos_token}"'
    lines = [f"FROM ./{file}", f'TEMPLATE """{bundle.family.render("{{ .Prompt }}")}"""']
    return "\n".join(lines + [f"PARAMETER {name} {value}" for name, value in settings.items()]) + "\n"
