"""Base models whose weights are stored in 8 or 4 bits: bitsandbytes to train an adapter on them, torch's int8 on a CPU.

What is quantized are the linear layers of the blocks; embeddings and norms stay in fp32.
"""

import importlib.util
import logging
import warnings
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from .. import hardware
from ..errors import ModelError

_CPU = "int8-cpu"


def load_quantized(path: str, auto_model: type, quantization: str) -> PreTrainedModel:
    """The model in a folder with its linear layers in `nf4`, `int8` or, on a CPU and to generate alone, `int8-cpu`.

    NF4 with quantized scales, computing in bf16, is QLoRA's form (Dettmers et al. 2023, arXiv 2305.14314); `int8` is
    LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339).

    Raises:
        ModelError: A package is missing, or the device does not have the form.
    """
    _require_support(quantization)
    arguments: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if quantization == _CPU:
        hardware.require_memory(path)
        with hardware.quiet():
            return _to_int8(auto_model.from_pretrained(path, **arguments))
    if quantization == "int8":
        # It would say of every layer and every pass that inputs are rounded to fp16, thousands of lines per minute.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if hardware.precision() == "bf16" else torch.float32,
        )
    arguments |= {"quantization_config": config, "device_map": {"": str(hardware.device())}}
    with hardware.quiet():
        return auto_model.from_pretrained(path, **arguments)


def _require_support(quantization: str) -> None:
    kind = hardware.device().type
    if quantization == _CPU:
        if kind != "cpu":
            raise ModelError(f"{_CPU} is for machines without a GPU; this one has {kind}. Take int8 or nf4.")
    elif kind == "mps":
        raise ModelError(f"{quantization} weights need bitsandbytes, which does not run on Apple's GPUs.")
    elif importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"{quantization} weights need bitsandbytes, which is not installed: uv sync --extra quantization, "
            f"or pip install bitsandbytes."
        )


def _to_int8(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every linear layer in int8. A head that shares its weights with the embeddings becomes a copy."""
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ModelError(f"{_CPU} needs torch.ao.quantization, which PyTorch {torch.__version__} lacks.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layers are to move to the package torchao
        model = quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    layers = (part for part in model.modules() if type(part).__module__.startswith("torch.ao.nn.quantized.dynamic"))
    model.int8_parameters = sum(layer.in_features * layer.out_features for layer in layers)
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes that the weights take as they are stored; tied ones count once, an int8 layer's scales are left out."""
    return getattr(model, "int8_parameters", 0) + model.get_memory_footprint()
