"""What fits into a card's memory: how many dialogues it trains on, evaluates and holds at once. Plain numbers.

An estimate, held to measured peaks in `tests/test_memory.py`. Where it is too low the trainer halves what it holds.
"""

import math
from dataclasses import dataclass

import datasets
import pyarrow.compute as pc
from transformers import PreTrainedModel

GIB = 1 << 30
CONTEXT = int(0.6 * GIB)  # what CUDA itself takes on the card before there is a tensor
USABLE = 0.93  # of the rest: the allocator's blocks do not fit without gaps
MOST = 64  # dialogues at once: more were not tried
COMPILED = 0.66  # of a plain step's activations, measured on an H100 for LoRA; 0.59 where every weight is trained
ROW, TARGETS = 1024, 512  # tokens whose multiples packed rows and their targets are filled up to
GRAPHED = 0.5  # of a compiled step's activations, once more: 0.09 to 0.46 were reserved beside them on an H200


@dataclass(frozen=True)
class Shape:
    """A model, and what is trained of it.

    `weight_bytes` are those of all weights as they are held (4 a weight in fp32), `trained` the number of trained ones.
    `inner` is the width of the feed-forward layers. `layers` read the prompt; an encoder-decoder model writes with
    `decoder_layers`. `position_bias` says that attention adds a learned bias for each pair of positions (T5).
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


@dataclass(frozen=True)
class Lengths:
    """Tokens of the training pairs: the longest prompt and summary, and mean and standard deviation of whole pairs."""

    prompt: int
    summary: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class Plan:
    """How an effective batch is held: `micro_batch` x `accumulation` dialogues are one step of the optimizer.

    `checkpointing` computes each layer's activations again in the backward pass. `evaluation_batch` is how many have
    their loss computed at once. `bytes` is the estimated peak of training.
    """

    micro_batch: int
    accumulation: int
    checkpointing: bool
    evaluation_batch: int
    bytes: int


def shape_of(network: PreTrainedModel) -> Shape:
    """The shape of a model, its adapter included."""
    config = network.config.get_text_config()
    names = ("intermediate_size", "d_ff", "encoder_ffn_dim")
    weights = list(network.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return Shape(
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        trained=trained,
        hidden=config.hidden_size,
        inner=next(getattr(config, name) for name in names if hasattr(config, name)),
        heads=config.num_attention_heads,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        decoder_layers=getattr(config, "num_decoder_layers", getattr(config, "decoder_layers", 0)),
        all_trained=trained == sum(weight.numel() for weight in weights),
        position_bias=hasattr(config, "relative_attention_num_buckets"),
    )


def lengths_of(rows: datasets.Dataset) -> Lengths:
    """The lengths of encoded pairs."""
    table = rows.with_format("arrow")[:]
    before, behind = (pc.list_value_length(table[name]).to_numpy() for name in ("input_ids", "labels"))
    pairs = before + behind
    return Lengths(int(before.max()), int(behind.max()), float(pairs.mean()), float(pairs.std()))


def divisors(batch_size: int, most: int) -> list[int]:
    """The micro-batches that keep an effective batch, largest first, up to `most`; 1 is always one."""
    return [size for size in range(min(batch_size, max(most, 1)), 0, -1) if batch_size % size == 0]


def plan(
    memory: int, batch_size: int, shape: Shape, lengths: Lengths, *, packed: bool = False, checkpoints: bool = True
) -> Plan:
    """The largest micro-batch that fits, without checkpointing where two dialogues fit so.

    More memory never brings checkpointing back, nor, with or without it, a smaller micro-batch.

    Args:
        memory: Bytes of the card, all of it.
        batch_size: The effective batch, which is kept.
        shape: The model.
        lengths: Its training pairs.
        packed: Whether batches are packed, and steps captured as graphs where nothing is accumulated (module `fast`).
        checkpoints: Whether activations may be checkpointed.
    """
    room, sizes = USABLE * (memory - CONTEXT), divisors(batch_size, MOST)

    def needed(size: int, checkpointing: bool) -> int:
        compiled = packed and not checkpointing
        found = training_bytes(size, shape, lengths, checkpointing, compiled)
        if compiled and size == batch_size:  # beside the graphs' own memory is that of steps whose shape is new
            found += int(GRAPHED * activation_bytes(size, shape, lengths, packed=True))
        return found

    checkpointing = checkpoints and training_bytes(min(2, batch_size), shape, lengths, packed=packed) > room
    size = next((size for size in sizes if needed(size, checkpointing) <= room), 1)
    evaluation = next((size for size in sizes if evaluation_bytes(size, shape, lengths) <= room), 1)
    return Plan(size, batch_size // size, checkpointing, evaluation, needed(size, checkpointing))


def training_bytes(
    micro_batch: int, shape: Shape, lengths: Lengths, checkpointing: bool = False, packed: bool = False
) -> int:
    """The peak of a training step: weights, gradients, AdamW and activations.

    16 bytes for a trained weight in fp32: itself, its gradient and two moments (Rajbhandari et al. 2020, arXiv
    1910.02054, section 3.1, count the same with copies in 16 bits). Autocast holds another copy in 16 bits.
    """
    copies = shape.weight_bytes // 2
    return state_bytes(shape) + copies + activation_bytes(micro_batch, shape, lengths, checkpointing, packed)


def state_bytes(shape: Shape) -> int:
    """Weights as they are held, and for each trained one its gradient and AdamW's two moments in fp32."""
    return shape.weight_bytes + 12 * shape.trained


def activation_bytes(
    micro_batch: int, shape: Shape, lengths: Lengths, checkpointing: bool = False, packed: bool = False
) -> int:
    """What the forward pass keeps for the backward pass, and the logits.

    As Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) count it, for the layers of today: attention that is not
    materialized has no term of length², and 36 bytes a token and hidden unit are the residual stream and norms in
    fp32 (16), the inputs of linear layers (10) and queries, keys, values and outputs (10) in 16 bits; 8 a token and
    inner unit are the gate, its activation, the other branch and their product. Layers whose weights are frozen keep
    less, 28 and 6, but for T5's plain ones. In fp32 the sums are about the same (32 and 16): less is copied, and all of
    it takes 4 bytes.
    T5 writes its GELU out in PyTorch, which keeps about 30 a token and inner unit, and its learned bias takes 9
    bytes a head and pair of positions, as attention that is materialized does (fitted to a peak measured on an H100);
    where it is packed its GELU is compiled, and its attention is a kernel that materializes nothing.
    Logits take 16 bytes: as computed, in fp32, as logarithms of probabilities, and their gradient.
    With checkpointing a layer keeps its input in fp32 alone; one layer is there whole. Packed rows and targets are
    filled up to multiples of `ROW` and `TARGETS`, and compiled steps take `COMPILED` of all that.
    """
    share, row, written = float(micro_batch), 1, 1  # of the longest pair; and what rows and targets are filled up to
    if packed:  # no padding: the sum of random lengths, five standard deviations above its mean
        tokens = micro_batch * lengths.mean + 5 * lengths.deviation * math.sqrt(micro_batch)
        share, row, written = min(share, tokens / (lengths.prompt + lengths.summary)), ROW, TARGETS
    written_out = shape.position_bias and not packed
    whole = shape.all_trained or written_out
    token = (36 if whole else 28) * shape.hidden + (30 if written_out else 8 if whole else 6) * shape.inner
    pair = 9 * shape.heads * share if written_out else 0
    prompts, summaries = multiple(share * lengths.prompt, row), multiple(share * (lengths.summary + 1), written)
    if shape.decoder_layers:
        # Across, keys and values of the prompt: two projections, their inputs and outputs in 16 bits.
        reading = token * prompts + pair * lengths.prompt**2
        across = 8 * shape.hidden * prompts + pair * lengths.prompt * lengths.summary
        writing = 1.4 * token * summaries + pair * lengths.summary**2 + across
    else:
        reading, writing = token * multiple(share * (lengths.prompt + lengths.summary), row), 0
    if checkpointing:
        inputs = shape.layers * prompts + (shape.decoder_layers or shape.layers) * summaries
        layers = 4 * shape.hidden * inputs + max(reading, writing)
    else:
        layers = shape.layers * reading + shape.decoder_layers * writing
    found = layers + 16 * shape.vocabulary * summaries
    return int(COMPILED * found if packed else found)


def multiple(tokens: float, of: int) -> int:
    """So many tokens, rounded up to a multiple."""
    return math.ceil(tokens / of) * of


def evaluation_bytes(batch_size: int, shape: Shape, lengths: Lengths) -> int:
    """The peak of computing a loss while a model is trained: one layer at a time, and the logits."""
    tokens = lengths.prompt + lengths.summary
    layer = (24 * shape.hidden + 12 * shape.inner) * tokens
    if shape.position_bias:
        layer += 10 * shape.heads * lengths.prompt**2
    copies = shape.weight_bytes // 2
    return state_bytes(shape) + copies + batch_size * (layer + 14 * shape.vocabulary * (lengths.summary + 1))


def generation_tokens(memory: int, shape: Shape, key_bytes: int, num_beams: int = 1) -> int:
    """How many tokens of dialogues, padding and new ones included, are in a batch that summaries are written for.

    Up to a quarter of the memory for keys and values of every beam, and no more than what weights, gradients and
    optimizer leave. `key_bytes` is what keys and values take a token (fp32: the cache is copied as it grows). Of the
    whole memory, so that batches, and with them the rounding of what is computed in bf16, are the same whenever they
    are made on a card.
    """
    token = key_bytes * num_beams
    left = USABLE * (memory - CONTEXT) - state_bytes(shape)
    beside = 24 * shape.hidden + 12 * shape.inner  # a layer that reads the prompts
    return max(1, int(min(memory / 4 / token, left / (token + beside))))
