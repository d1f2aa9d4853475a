"""Base models whose weights are held in 8 or 4 bits: bitsandbytes to train an adapter on them, torch's int8 on a CPU.

What is quantized are the linear layers of the blocks; embeddings and norms stay in fp32.
"""

import importlib.util
import logging
import warnings
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from . import hardware
from .packaged import ModelError

CPU = "int8-cpu"


def load_arguments(quantization: str | None) -> dict[str, Any]:
    """What `from_pretrained` takes for weights in `nf4` or `int8`; nothing for others.

    NF4 with the scales quantized too and computing in bf16 is QLoRA's form (Dettmers et al. 2023, arXiv 2305.14314),
    `int8` is LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).

    Raises:
        ModelError: bitsandbytes is missing, or the device is Apple's; `int8-cpu` on another device than the CPU.
    """
    kind = hardware.device().type
    if quantization == CPU and kind != "cpu":
        raise ModelError(f"{CPU} is for machines without a GPU; this one has {kind}. Take int8 or nf4.")
    if quantization in (None, CPU):
        return {}
    if kind == "mps":
        raise ModelError(f"{quantization} weights need bitsandbytes, which does not run on Apple's GPUs.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{quantization} weights need bitsandbytes, which is not installed: uv sync --extra quantization, "
            f"or pip install bitsandbytes."
        )
    if quantization == "int8":
        # It would say of every layer and every pass that inputs are rounded to fp16, thousands of lines a minute.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if hardware.precision() == "bf16" else torch.float32,
        )
    return {"quantization_config": config, "device_map": {"": str(hardware.device())}}


def to_int8(network: PreTrainedModel) -> PreTrainedModel:
    """The network with every linear layer in int8, its inputs quantized as they come: for generation on a CPU alone.

    A head that shares its weights with the embeddings becomes a copy of its own.

    Raises:
        ModelError: This version of PyTorch has no such layers (they are to move to the package torchao).
    """
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ModelError(f"{CPU} needs torch.ao.quantization, which PyTorch {torch.__version__} lacks.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that move
        return quantize_dynamic(network, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def int8_layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    """What `to_int8` made of linear layers."""
    return [part for part in network.modules() if type(part).__module__.startswith("torch.ao.nn.quantized.dynamic")]


def weight_bytes(network: PreTrainedModel) -> int:
    """Bytes that the weights take as they are held; tied ones count once, an int8 layer's scales are left out."""
    return _in_int8(network) + network.get_memory_footprint()


def count_weights(network: torch.nn.Module) -> int:
    """How many weights there are, those that are packed included. Tied weights count once."""
    return _in_int8(network) + sum(weight.numel() * _packed_in(weight) for weight in network.parameters())


def _in_int8(network: torch.nn.Module) -> int:
    """Weights of `int8_layers`, a byte each, which are no parameters."""
    return sum(part.in_features * part.out_features for part in int8_layers(network))


def _packed_in(weight: torch.Tensor) -> int:
    """How many weights an element holds: bitsandbytes keeps two of 4 bits in a byte."""
    return 2 if type(weight).__name__ == "Params4bit" and weight.dtype == torch.uint8 else 1
