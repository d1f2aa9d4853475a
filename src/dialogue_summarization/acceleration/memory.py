"""What fits into memory: how many dialogues are trained on, and how many generated for, at once.

An estimate from the sizes of model and data, held to measured peaks by tests. Where it is too low, oom.py halves.
"""

import math
from dataclasses import dataclass, replace

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from .. import hardware
from ..hardware import GIB
from .packing import PAD_LABELS_TO, PAD_TOKENS_TO, round_up

CUDA_CONTEXT_BYTES = int(0.6 * GIB)  # what CUDA takes on the GPU before there is a tensor
USABLE_FRACTION = 0.93  # of the rest: the allocator's blocks leave gaps
LARGEST_MICRO_BATCH = 64  # more were not tried

# Coefficients of the estimate, in bytes or as fractions, fitted to peaks measured on H100 and H200. What a layer keeps
# for its backward pass is counted as by Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1): (per token and hidden
# unit, per token and unit of the feed-forward layer). With autocast and in fp32 it comes to about the same.
STATE = 12  # per trained parameter: gradient and AdamW's two moments (Rajbhandari et al. 2020, arXiv 1910.02054)
LAYER = (36, 8)  # residual stream and norms 16, inputs of linear layers 10, attention 10; 4 tensors of feed-forward
FROZEN_LAYER = (28, 6)  # no inputs of frozen linear layers
EAGER_T5_LAYER = (36, 30)  # its GELU is written out in PyTorch where it is not compiled
EAGER_T5_SCORES = 9  # per head and pair of positions: its attention is materialized where it is not packed
CROSS_ATTENTION = 8  # per prompt token and hidden unit: inputs and outputs of two projections
DECODER_LAYER = 1.4  # times a layer, per token
CHECKPOINT = 4  # per token and hidden unit: the input of a checkpointed layer
LOGITS = 16  # per label and vocabulary entry: as computed, in fp32, log-probabilities, gradient
COMPILED = 0.66  # compiled steps keep this fraction of all activations
GRAPHS = 0.5  # and this fraction of them again, for steps of a new shape beside the graphs' own memory
GENERATING_LAYER = (24, 12)  # without a backward pass, one layer at a time


@dataclass(frozen=True)
class ModelDims:
    """Sizes of a model, its adapter included. `trained` is a number of parameters, `inner` the feed-forward width.

    `layers` read the prompt, `decoder_layers` are an encoder-decoder model's. T5 has a `position_bias`.
    """

    weight_bytes: int
    trained: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    layers: int
    decoder_layers: int = 0
    all_trained: bool = True
    position_bias: bool = False

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and optimizer states."""
        return self.weight_bytes + STATE * self.trained

    def sharded(self, world_size: int) -> "ModelDims":
        """What each process holds of weights, gradients and optimizer states that are divided among several."""
        return replace(self, weight_bytes=self.weight_bytes // world_size, trained=self.trained // world_size)


@dataclass(frozen=True)
class SequenceLengths:
    """Tokens of training pairs: the longest prompt and summary; mean and standard deviation of prompt + summary."""

    prompt: int
    summary: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class BatchPlan:
    """How an effective batch, micro_batch x accumulation, is held; `bytes` is the estimated peak of training."""

    micro_batch: int
    accumulation: int
    checkpointing: bool
    bytes: int


def plan_batch(
    memory: int,
    batch_size: int,
    dims: ModelDims,
    lengths: SequenceLengths,
    *,
    packed: bool = False,
    checkpoints: bool = True,
) -> BatchPlan:
    """The largest micro-batch that fits into a device's memory, without checkpointing if two dialogues fit so.

    The effective batch stays. More memory never brings checkpointing back, nor a smaller micro-batch.
    `packed` batches are captured as CUDA graphs where nothing is accumulated; `checkpoints`: checkpointing is possible.
    """
    usable = USABLE_FRACTION * (memory - CUDA_CONTEXT_BYTES)
    checkpointing = checkpoints and training_bytes(min(2, batch_size), dims, lengths, packed=packed) > usable
    packed = packed and not checkpointing  # which is not compiled

    def needed(size: int) -> int:
        is_captured = packed and size == batch_size
        graphs = int(GRAPHS * activation_bytes(size, dims, lengths, packed=True)) if is_captured else 0
        return training_bytes(size, dims, lengths, checkpointing, packed) + graphs

    sizes = [size for size in range(1, min(batch_size, LARGEST_MICRO_BATCH) + 1) if batch_size % size == 0]
    micro_batch = max((size for size in sizes if needed(size) <= usable), default=1)
    return BatchPlan(micro_batch, batch_size // micro_batch, checkpointing, needed(micro_batch))


def training_bytes(
    micro_batch: int, dims: ModelDims, lengths: SequenceLengths, checkpointing: bool = False, packed: bool = False
) -> int:
    """The peak of a training step: weights and their copies by autocast, gradients, optimizer states, activations."""
    activations = activation_bytes(micro_batch, dims, lengths, checkpointing, packed)
    return dims.state_bytes + dims.weight_bytes // 2 + activations


def activation_bytes(
    micro_batch: int, dims: ModelDims, lengths: SequenceLengths, checkpointing: bool = False, packed: bool = False
) -> int:
    """What the forward pass keeps for the backward pass, and the logits."""
    pairs, token_multiple, label_multiple = float(micro_batch), 1, 1  # pairs of the longest prompt and summary
    if packed:  # no padding: the sum of random lengths, five standard deviations above its mean
        tokens = micro_batch * lengths.mean + 5 * lengths.deviation * math.sqrt(micro_batch)
        pairs = min(pairs, tokens / (lengths.prompt + lengths.summary))
        token_multiple, label_multiple = PAD_TOKENS_TO, PAD_LABELS_TO
    eager_t5 = dims.position_bias and not packed
    per_hidden, per_inner = EAGER_T5_LAYER if eager_t5 else LAYER if dims.all_trained else FROZEN_LAYER
    per_token = per_hidden * dims.hidden + per_inner * dims.inner
    per_score = EAGER_T5_SCORES * dims.heads * pairs if eager_t5 else 0
    prompts = round_up(pairs * lengths.prompt, token_multiple)
    summaries = round_up(pairs * (lengths.summary + 1), label_multiple)
    if dims.decoder_layers:
        layer = per_token * prompts + per_score * lengths.prompt**2
        cross_attention = CROSS_ATTENTION * dims.hidden * prompts + per_score * lengths.prompt * lengths.summary
        decoder_layer = DECODER_LAYER * per_token * summaries + per_score * lengths.summary**2 + cross_attention
    else:
        layer, decoder_layer = per_token * round_up(pairs * (lengths.prompt + lengths.summary), token_multiple), 0
    if checkpointing:  # one layer is there whole
        inputs = dims.layers * prompts + (dims.decoder_layers or dims.layers) * summaries
        layers = CHECKPOINT * dims.hidden * inputs + max(layer, decoder_layer)
    else:
        layers = dims.layers * layer + dims.decoder_layers * decoder_layer
    total = layers + LOGITS * dims.vocabulary * summaries
    return int(COMPILED * total if packed else total)


def generation_tokens(memory: int, dims: ModelDims, key_bytes: int, num_beams: int = 1) -> int:
    """How many tokens a batch to generate for may hold, padding and new tokens included.

    Keys and values, `key_bytes` per token and beam, take up to a quarter of the memory, and what weights, gradients and
    optimizer leave. By the whole memory: batches, and with them the rounding of bf16, are then always the same.
    """
    per_token, layer = key_bytes * num_beams, GENERATING_LAYER[0] * dims.hidden + GENERATING_LAYER[1] * dims.inner
    left = USABLE_FRACTION * (memory - CUDA_CONTEXT_BYTES) - dims.state_bytes
    return max(1, int(min(memory / 4 / per_token, left / (per_token + layer))))


def device_memory() -> int:
    """Bytes of the GPU, or of the machine. A GPU of which only a fraction may be used counts as a smaller one."""
    memory = hardware.describe()["memory_bytes"]
    fraction = torch.cuda.get_per_process_memory_fraction() if hardware.device().type == "cuda" else 1
    return memory if fraction == 1 else int(fraction * memory) + CUDA_CONTEXT_BYTES


def dims_of(model: PreTrainedModel) -> ModelDims:
    """The sizes of a model, its adapter included."""
    config, weights = model.config.get_text_config(), list(model.parameters())
    inner = next(name for name in ("intermediate_size", "d_ff", "encoder_ffn_dim") if hasattr(config, name))
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return ModelDims(
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        trained=trained,
        hidden=config.hidden_size,
        inner=getattr(config, inner),
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        decoder_layers=getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", 0)),
        all_trained=all(weight.requires_grad for weight in weights),
        position_bias=hasattr(config, "relative_attention_num_buckets"),
    )


def lengths_of(rows: Dataset) -> SequenceLengths:
    """The lengths of encoded pairs."""
    table = rows.with_format("arrow")[:]
    prompts, summaries = (pc.list_value_length(table[name]).to_numpy() for name in ("input_ids", "labels"))
    pairs = prompts + summaries
    return SequenceLengths(int(prompts.max()), int(summaries.max()), float(pairs.mean()), float(pairs.std()))
