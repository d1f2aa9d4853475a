"""What a further method makes of a model, and LoRA+'s optimizer."""

import peft
import torch
from peft.optimizers import create_loraplus_optimizer as peft_loraplus_optimizer
from transformers import PreTrainedModel, Trainer

from ..errors import ModelError
from ..experiments import Method
from ..models import peft_config
from .quantization import load_quantized as load_quantized  # models.load_model finds it here


def apply(model: PreTrainedModel, method: Method) -> PreTrainedModel | peft.PeftModel:
    """The model with only its last layers trained, or with a fresh adapter. Raises `ModelError`, and PEFT's own."""
    if method.last_blocks:
        return _train_last_layers(model, method)
    config = peft_config(method, model.config)
    if config.peft_type == "PREFIX_TUNING" and hasattr(model.config, "d_kv"):
        # PEFT takes a key's size to be d_model / heads; in FLAN-T5-small it is 64, and 512 / 6 is no whole number.
        config.token_dim = model.config.d_kv * model.config.num_heads
        config.num_attention_heads = model.config.num_heads
    return number_positions(peft.get_peft_model(model, config))


def _train_last_layers(model: PreTrainedModel, method: Method) -> PreTrainedModel:
    """Train the last layers only, the decoder's in an encoder-decoder model: no gradient goes further back."""
    layers = next(module for module in model.get_decoder().modules() if isinstance(module, torch.nn.ModuleList))
    if len(layers) < method.last_blocks:
        kind = model.config.model_type
        raise ModelError(f"{method.name} needs a deeper model: this {kind!r} decodes in {len(layers)} blocks.")
    model.requires_grad_(False)
    layers[-method.last_blocks :].requires_grad_(True)
    return model


def number_positions(model: peft.PeftModel) -> peft.PeftModel:
    """Number the positions of a left-padded batch by its mask where virtual tokens stand before it.

    PEFT drops `position_ids` there. Counted from the left edge, a dialogue would be further from its virtual tokens the
    more padding stands between them: its loss and its summary would depend on its neighbours in the batch.
    """
    config = model.active_peft_config
    if not config.is_prompt_learning or config.task_type != "CAUSAL_LM":
        return model

    def add_position_ids(_: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask, inputs = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
        inputs = kwargs.get("input_ids") if inputs is None else inputs
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
            kwargs["position_ids"] = positions[:, -inputs.shape[1] :]
        return args, kwargs

    model.get_base_model().register_forward_pre_hook(add_position_ids, with_kwargs=True)
    return model


def create_loraplus_optimizer(trainer: Trainer, ratio: float) -> torch.optim.Optimizer:
    """PEFT's optimizer of LoRA+, in which B learns `ratio` times as fast as A."""
    optimizer_class, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    return peft_loraplus_optimizer(
        trainer.model,
        optimizer_class,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        **arguments,
    )
