"""From an experiment to a model with its tokenizer, and to what a method trains of it."""

import contextlib
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType

import peft
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import digests, hardware, packaged
from .disk import find_corrupt_file
from .errors import ModelError, UserError
from .experiments import PACKAGED_MODEL, Experiment, Method
from .hub import fetch
from .model_checks import require_model, require_own_tokenizer, require_tokenizer
from .tokenization import Family, family_of

# Of peft 0.21, about what is right here: a renamed attribute, an untied head, norms, positions of virtual tokens.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied", category=UserWarning)
warnings.filterwarnings("ignore", message="Unsupported layer type.*Norm", category=UserWarning)
warnings.filterwarnings("ignore", message="Position ids are not supported for", category=UserWarning)

MODULES = ("query", "key", "value", "output", "mlp_in", "mlp_out", "norm")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj up_proj", "down_proj")
_BART = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_LLAMA_NORMS = "input_layernorm post_attention_layernorm norm"
_BART_NORMS = "self_attn_layer_norm encoder_attn_layer_norm final_layer_norm"
# By architecture: what it calls the projections of attention, both sides of its feed-forward layers, and its norms.
_NAMES = {
    **dict.fromkeys(("t5", "mt5"), ("q", "k", "v", "o", "wi_0 wi_1", "wo", "layer_norm final_layer_norm")),  # v1.1 on
    "bart": (*_BART, f"{_BART_NORMS} layernorm_embedding"),
    "mbart": (*_BART, f"{_BART_NORMS} layernorm_embedding layer_norm"),
    "pegasus": (*_BART, f"{_BART_NORMS} layer_norm"),
    **dict.fromkeys(("llama", "mistral", "gemma", "qwen2"), (*_LLAMA, _LLAMA_NORMS)),
    "qwen3": (*_LLAMA, f"{_LLAMA_NORMS} q_norm k_norm"),
}
TARGET_MODULES = {model_type: dict(zip(MODULES, names, strict=True)) for model_type, names in _NAMES.items()}
_KNOWN = ", ".join(TARGET_MODULES)


@dataclass(frozen=True)
class ModelBundle:
    """A model, its adapter included, with its tokenizer and the family that encodes and decodes for it."""

    model: PreTrainedModel | peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    family: Family


def load_model(
    experiment: Experiment,
    weights: Path | None = None,
    *,
    quantization: str | None = None,
    device: torch.device | None = None,
) -> ModelBundle:
    """A model fresh from its files, in fp32 and evaluation mode.

    The dtype is given, since transformers would take the checkpoint's: small updates round away in bf16 weights.

    Args:
        experiment: Names the base model, the prompt and its limit.
        weights: A folder that `save` wrote, a whole model or an adapter; without it the untrained base model.
        quantization: A `Method.quantization`: linear layers of the base are then stored in 8 or 4 bits.
        device: Where the model is moved to; the CPU without one. A quantized model stays where it is loaded.

    Raises:
        ModelError: It cannot be found or fetched, a file is missing or damaged, or it cannot be quantized here.
        NotEnoughMemory: It does not fit.
    """
    is_adapter = weights is not None and (weights / "adapter_config.json").exists()
    path = str(weights) if weights and not is_adapter else local_snapshot(experiment.model)
    hardware.keep_freed_memory()
    tokenizer, family = load_tokenizer(path, experiment)
    with _naming_damage(*filter(None, (weights, Path(path)))):
        if quantization:
            model = further_methods().load_quantized(path, family.auto_model, quantization)
        else:
            hardware.require_memory(path)
            with hardware.quiet():
                model, info = family.auto_model.from_pretrained(
                    path, dtype=torch.float32, use_safetensors=True, output_loading_info=True
                )
            _require_all_weights(path, info)
        if is_adapter:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                model = peft.PeftModel.from_pretrained(model, weights)
    if is_adapter and model.active_peft_config.is_prompt_learning:
        model = further_methods().number_positions(model)
    if device is not None and not quantization:
        model.to(device)
    return ModelBundle(model.eval(), tokenizer, family)


def _require_all_weights(path: str, info: Mapping[str, set[str]]) -> None:
    """Raise `ModelError` where weights have other names than the model's, or other layers: it would be partly random.

    PEGASUS computes its positions; buffers of earlier versions are left over.
    """
    missing = [name for name in info["missing_keys"] if "embed_positions" not in name]
    left = [name for name in info["unexpected_keys"] if re.search(r"(layers|block)\.\d+\..*(weight|bias)$", name)]
    if missing or left:
        examples = ", ".join(f"{kind} {min(names)}" for kind, names in (("no", missing), ("unknown", left)) if names)
        raise ModelError(f"The weights in {path} are not those of its config.json: {examples}. Copy both anew.")


def further_methods() -> ModuleType:
    """The room of methods that the core does not have, imported only for one of them."""
    from .methods import adapt

    return adapt


def load_tokenizer(path: str, experiment: Experiment) -> tuple[PreTrainedTokenizerBase, Family]:
    """The tokenizer and family of the model in a folder, without its weights, for an experiment's prompts.

    Raises `ModelError` where the architecture is not in `TARGET_MODULES`, or the tokenizer is missing or another's.
    """
    folder = Path(path)
    with _naming_damage(folder):
        config = AutoConfig.from_pretrained(path)
        if config.model_type not in TARGET_MODULES:
            raise ModelError(f"{path} is a {config.model_type!r} model; the architectures known here are {_KNOWN}.")
        require_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(path)
    require_own_tokenizer(folder, config, tokenizer, experiment.prompt)
    if tokenizer.pad_token is None:  # many Llamas: any token serves, since padding is masked by length
        tokenizer.pad_token = tokenizer.eos_token
    new_tokens = experiment.generation.max_new_tokens
    return tokenizer, family_of(config, tokenizer, experiment.max_prompt_tokens, experiment.prompt, new_tokens)


@contextlib.contextmanager
def _naming_damage(*folders: Path) -> Iterator[None]:
    """Raise `ModelError`, which names the damaged file, where a model cannot be loaded from its files."""
    try:
        yield
    except Exception as error:  # transformers and PEFT raise nearly every kind
        if isinstance(error, UserError | MemoryError) or "allocate" in str(error):
            raise
        corrupt = next(filter(None, map(find_corrupt_file, folders)), folders[0])
        remedy = "Fetch or copy it anew; remove a run's folder to train it again. Weights must be safetensors."
        raise ModelError(f"{corrupt} cannot be loaded ({error}). {remedy}") from error


def local_snapshot(model: str) -> str:
    """The folder where `from_pretrained` finds a model: the packaged one is converted on first use, the Hub's fetched.

    Raises `ModelError` where it is neither there nor can be fetched, or is no model.
    """
    if model == PACKAGED_MODEL:
        return str(packaged.folder())
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ModelError(f"There is no folder {model!r}. Give a folder with a model, or a Hub id, as owner/name.")
        folder = Path(_fetched(model))
    require_model(folder)
    return str(folder)


@lru_cache  # once per process: the Hub is asked, and waited for, at every call otherwise
def _fetched(model: str) -> str:
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    return fetch(partial(snapshot_download, allow_patterns=patterns), model, "model", ModelError)


def fingerprint(model: str) -> str:
    """A hash of a model's files, whatever folder they are in."""
    if model == PACKAGED_MODEL:
        return digests.of_file(packaged.gguf())
    return digests.of_folder(Path(local_snapshot(model)), digests.MODEL_FILES)


def apply_method(model: PreTrainedModel, method: Method) -> PreTrainedModel | peft.PeftModel:
    """The model as a method trains it: in a fresh adapter, mostly frozen, or as it is. Raises `ModelError`."""
    if method.peft is None and not method.last_blocks:
        return model
    try:
        if method.peft and method.peft["peft_type"] == "LORA":
            return peft.get_peft_model(model, peft_config(method, model.config))
        return further_methods().apply(model, method)
    except Exception as error:  # PEFT raises nearly every kind
        raise ModelError(f"{method.name} cannot be applied to {model.config.model_type!r}: {error}") from error


def peft_config(method: Method, config: PretrainedConfig) -> peft.PeftConfig:
    """PEFT's configuration of a method for an architecture. Raises `ModelError` where it is not in `TARGET_MODULES`."""
    task_type = "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"
    arguments = {**method.peft, "task_type": task_type}
    for name in {"target_modules", "feedforward_modules"} & set(arguments):
        arguments[name] = target_modules(arguments[name], config.model_type)
    return peft.get_peft_config(arguments)


def target_modules(names: Sequence[str], model_type: str) -> list[str]:
    """An architecture's module names for generic ones, those of `MODULES`. Raises `ModelError`."""
    if model_type not in TARGET_MODULES:
        raise ModelError(f"No target modules are known for {model_type!r}, only for {_KNOWN}: see TARGET_MODULES.")
    return [module for name in names for module in TARGET_MODULES[model_type][name].split()]


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """`parameters` and `trainable_parameters`. Tied ones count once, quantized ones each."""
    total = getattr(model, "int8_parameters", 0)
    for weight in model.parameters():
        packed = type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8  # bitsandbytes: two per byte
        total += weight.numel() * (2 if packed else 1)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"parameters": total, "trainable_parameters": trainable}


def base_model(model: torch.nn.Module) -> PreTrainedModel:
    """The model inside an adapter, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


def save(bundle: ModelBundle, folder: Path, base: str, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write a model, or its adapter alone, as safetensors, with its tokenizer: whole, or not at all.

    `base` is what an adapter's files call its model; `state_dict` has all weights where the model has a part of them.
    """
    for config in getattr(bundle.model, "peft_config", {}).values():
        config.base_model_name_or_path = base
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with hardware.quiet():
        bundle.model.save_pretrained(temporary, state_dict=state_dict)
        bundle.tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's: a form that nobody filled in, with this machine's paths
    temporary.rename(folder)
