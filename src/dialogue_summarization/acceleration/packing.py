"""Batches of few shapes, for compiled layers and CUDA graphs; equal in loss and gradients to `Family.collate`.

Decoder-only models and T5 get packed rows: the sequences of a batch one after another, without padding between them.
Other encoder-decoder models get a padded batch whose lengths are rounded up.
"""

import math
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from ..tokenization import IGNORE_INDEX, DecoderOnly, EncoderDecoder, Family

PACKED, BIASED = "packed", "biased"  # the attention implementations of attention.py
PAD_TOKENS_TO, PAD_LABELS_TO = 1024, 512  # packed rows are filled up to multiples of these


def attention_for(model: PreTrainedModel) -> str | None:
    """The attention implementation that the batches of `collate_packed` need; None: the model's own."""
    if not model.config.is_encoder_decoder:
        return PACKED
    return BIASED if model.config.model_type == "t5" else None


def collate_packed(family: Family, model_type: str, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Encoded pairs, up to `batch_size`, in one of a few shapes, as the arguments of the model's forward pass."""
    if isinstance(family, DecoderOnly):
        return _pack_decoder_only(family, rows, batch_size)
    if model_type == "t5":
        return _pack_t5(family, rows, batch_size)
    return _pad_encoder_decoder(family, rows, batch_size)


def pack_sequences(
    sequences: list[list[int]], fill: int, multiple: int, count: int, max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences one after another in a row, (1, tokens), filled up to a multiple, and cu_seqlens, int32, (count + 1,).

    Sequence i is tokens cu_seqlens[i] to cu_seqlens[i + 1]. What fills the row up counts as further sequences, of at
    most `max_length` tokens, so that there are always `count`.
    """
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    row = pad(tokens, (0, round_up(len(tokens), multiple) - len(tokens)), value=fill)
    lengths = [len(sequence) for sequence in sequences] + [max_length] * (count - len(sequences))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).clamp(max=len(row))
    return row[None], cu_seqlens.to(torch.int32)


def round_up(length: float, multiple: int) -> int:
    """The smallest multiple that is not below `length`."""
    return math.ceil(length / multiple) * multiple


def _pack_decoder_only(family: DecoderOnly, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    sequences = [[*row["input_ids"], *row["labels"]] for row in rows]
    max_length = round_up(max(map(len, sequences)), 2048)
    pad_id = family.tokenizer.pad_token_id
    input_ids, cu_seqlens = pack_sequences(sequences, pad_id, PAD_TOKENS_TO, batch_size + 1, max_length)
    starts = cu_seqlens[:-1].repeat_interleave(cu_seqlens.diff())
    kept, labels = [], []  # positions whose logits are computed: each summary's, and the one before it
    for row, end in zip(rows, cu_seqlens[1:].tolist(), strict=False):
        kept += range(end - len(row["labels"]) - 1, end)
        labels += [IGNORE_INDEX, *row["labels"]]
    missing = round_up(len(kept), PAD_LABELS_TO) - len(kept)
    return {
        "input_ids": input_ids,
        "position_ids": (torch.arange(len(starts)) - starts)[None],
        "attention_mask": torch.zeros(1, 1, 1, 1),  # of 4 dimensions: transformers then makes none of its own
        "cu_seq_lens_q": cu_seqlens,
        "max_length_q": max_length,
        "labels": torch.tensor([labels + [IGNORE_INDEX] * missing]),
        "logits_to_keep": torch.tensor(kept + [0] * missing),
        "use_cache": False,
    }


def _pack_t5(family: EncoderDecoder, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Prompts in one row, summaries in another; `max_*_length` are the positions for which there is a position bias."""
    prompts = [row["input_ids"] for row in rows]
    decoder_inputs, labels = family.decoder_inputs_and_labels(rows)
    max_prompt_length = round_up(max(map(len, prompts)), PAD_TOKENS_TO // 2)
    max_summary_length = round_up(max(map(len, labels)), PAD_LABELS_TO // 2)
    pad_id = family.tokenizer.pad_token_id
    count = batch_size + 2  # two sequences of these lengths fill up either row
    input_ids, prompt_cu_seqlens = pack_sequences(prompts, pad_id, PAD_TOKENS_TO, count, max_prompt_length)
    summary_row = (PAD_LABELS_TO, count, max_summary_length)
    decoder_input_ids, summary_cu_seqlens = pack_sequences(decoder_inputs, pad_id, *summary_row)
    no_mask = torch.zeros(1, 1, 1, 1)  # of 4 dimensions: transformers then makes none of its own
    return {
        "input_ids": input_ids,
        "attention_mask": no_mask,
        "decoder_input_ids": decoder_input_ids,
        "decoder_attention_mask": no_mask,
        "labels": pack_sequences(labels, IGNORE_INDEX, *summary_row)[0],
        "prompt_cu_seqlens": prompt_cu_seqlens,
        "summary_cu_seqlens": summary_cu_seqlens,
        "max_prompt_length": max_prompt_length,
        "max_summary_length": max_summary_length,
        "use_cache": False,
    }


def _pad_encoder_decoder(family: EncoderDecoder, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Lengths are multiples of 64 and 32; rows that learn nothing fill the batch up."""
    blank = {"input_ids": rows[0]["input_ids"][:1], "labels": []}
    batch = family.collate([*rows, *[blank] * (batch_size - len(rows))])
    pad_id = family.tokenizer.pad_token_id
    shapes = {"input_ids": (pad_id, 64), "attention_mask": (0, 64), "decoder_input_ids": (pad_id, 32)}
    for name, (fill, multiple) in (shapes | {"labels": (IGNORE_INDEX, 32)}).items():
        length = batch[name].shape[1]
        batch[name] = pad(batch[name], (0, round_up(length, multiple) - length), value=fill)
    # Masks of 4 dimensions: of 2, transformers would look at the values, for which a CUDA graph cannot wait.
    batch["attention_mask"] = batch["attention_mask"].bool()[:, None, None, :]
    length = batch["decoder_input_ids"].shape[1]
    batch["decoder_attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    return batch
