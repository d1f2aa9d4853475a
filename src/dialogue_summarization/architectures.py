"""What each architecture calls its parts: from the generic names that methods use to those of modules."""

from collections.abc import Sequence

from .packaged import ModelError

# What each architecture calls the four projections of attention, the two sides of its feed-forward layers, its norms.
_LLAMA = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "output": ("o_proj",),
    "mlp_in": ("gate_proj", "up_proj"),
    "mlp_out": ("down_proj",),
    "norm": ("input_layernorm", "post_attention_layernorm", "norm"),
}
_BART = _LLAMA | {
    "output": ("out_proj",),
    "mlp_in": ("fc1",),
    "mlp_out": ("fc2",),
    "norm": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm", "layernorm_embedding"),
}
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "t5": {
        "query": ("q",),
        "key": ("k",),
        "value": ("v",),
        "output": ("o",),
        "mlp_in": ("wi_0", "wi_1"),  # T5 v1.1 and FLAN-T5; the first T5 has one, `wi`
        "mlp_out": ("wo",),
        "norm": ("layer_norm", "final_layer_norm"),
    },
    "bart": _BART,
    "pegasus": _BART | {"norm": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm", "layer_norm")},
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"norm": (*_LLAMA["norm"], "q_norm", "k_norm")},
}


def targets(names: Sequence[str], model_type: str, method: str) -> list[str]:
    """Module names of an architecture for generic ones: query, key, value, output, mlp_in, mlp_out, norm."""
    if model_type not in TARGETS:
        raise ModelError(
            f"No target modules of {method} are known for {model_type!r}, only for {', '.join(TARGETS)}: see TARGETS."
        )
    return [module for name in names for module in TARGETS[model_type][name]]
