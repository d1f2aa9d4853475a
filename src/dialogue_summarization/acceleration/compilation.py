"""Compiled transformer layers: each is compiled by itself, and one compilation serves all of them.

Of T5, whose layers take minutes to compile for any shape, only the parts for which it pays.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.fx.experimental._config
from peft.tuners.lora import LoraLayer
from torch.utils._pytree import tree_leaves

from .. import hardware
from ..models import base_model
from .attention import set_attention
from .packing import BIASED


def fast_steps_available() -> bool:
    """Whether compiled layers and CUDA graphs run here: on an Ampere GPU or newer, with Triton to compile for it."""
    is_new = hardware.device().type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    return is_new and importlib.util.find_spec("triton") is not None


def supports_packing(model: torch.nn.Module) -> bool:
    """Whether packed batches, compiled layers and a cache of fixed size serve a model.

    Virtual tokens would have to stand before every dialogue of a row; bitsandbytes' layers are not compiled.
    """
    return not has_virtual_tokens(model) and not getattr(model, "is_quantized", False)


def has_virtual_tokens(model: torch.nn.Module) -> bool:
    """Whether an adapter puts virtual tokens, or keys and values, before the prompt; checkpointing would lose them."""
    config = getattr(model, "active_peft_config", None)
    return bool(config and config.is_prompt_learning)


def compile_model(model: torch.nn.Module, attention: str | None) -> None:
    """Set a model up for the batches of `collate_packed`: its attention, and what is compiled, in place."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # or it would go on uncompiled without a word
    torch.fx.experimental._config.use_duck_shape = False  # or sizes that are equal by chance are taken to be one
    if attention is None:  # padded batches come in many shapes
        for layer in transformer_layers(model):
            layer.compile(dynamic=True)
        return
    set_attention(model, attention)
    if attention == BIASED:
        _compile_t5(model)
        return
    layers = transformer_layers(model)
    for layer in layers:
        layer.compile()  # dynamic in the row's length alone: with adapters, in all would take minutes
        layer._compiled_call_impl = _with_dynamic_length(layer._compiled_call_impl)
    if any(weight.requires_grad for weight in layers[0].parameters()):
        # Then every layer's inputs need a gradient; the first's would not, for which it is compiled anew.
        base_model(model).enable_input_require_grads()


@contextlib.contextmanager
def compilation_disabled(model: torch.nn.Module) -> Iterator[None]:
    """Within it nothing is compiled: for evaluation and generation, whose shapes change all the time."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, implementation in compiled:
            module._compiled_call_impl = implementation


def transformer_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer layers of a model, also inside an adapter."""
    names = base_model(model)._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def _compile_t5(model: torch.nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ == "T5LayerNorm":
            module.register_forward_hook(_cast_for_autocast)
        if type(module).__name__ in ("T5LayerNorm", "T5LayerFF"):
            module.compile(dynamic=True)
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # to fp32, from which autocast would cast it back


def _cast_for_autocast(norm: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Cast a norm's output once: each of the linear layers that follow would make a copy of its own."""
    device = output.device.type
    return output.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else output


def _with_dynamic_length(call: Callable[..., Any]) -> Callable[..., Any]:
    """One compilation then serves rows of any length; otherwise the first row's would get one of its own."""

    def marked(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for leaf in tree_leaves((hidden, args, kwargs)):
            if torch.is_tensor(leaf) and leaf.shape[:2] == hidden.shape[:2]:  # hidden states and positions
                torch._dynamo.maybe_mark_dynamic(leaf, 1)
        return call(hidden, *args, **kwargs)

    return marked
