"""The two families of models. All that differs between encoder-decoder and decoder-only models is here.

An encoder-decoder model (T5, BART) reads the prompt in its encoder and writes the summary with its decoder. A
decoder-only model (SmolLM2, Llama) continues the prompt: prompt and summary are one sequence, and the loss is on the
summary alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from . import fast
from .prompts import PROMPT, prompt

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


class Family(Protocol):
    """How a kind of model reads prompts, learns summaries and writes them."""

    tokenizer: PreTrainedTokenizerBase
    auto_model: ClassVar[type]  # the transformers class that loads such a model
    task_type: ClassVar[str]  # what PEFT calls the kind
    fixed_attention: ClassVar[str | None]  # the attention implementation that batches from `fixed` need
    label_shift: ClassVar[int]  # logits at position i are scored against the label at i + label_shift

    def render(self, dialogue: str) -> str:
        """A dialogue as the text that the tokenizer gets."""

    def encode(self, dialogue: str, summary: str | None = None) -> dict[str, Any]:
        """A dialogue, and the summary to learn, as `input_ids`, `labels` (with a summary), `length`, `truncated`."""

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of encoded dialogues, padded to its longest, as the arguments of the model's forward pass."""

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """The same batch in one of a few shapes, for compiled steps; equal in loss and gradients to `collate`."""

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """The tokens of the summary (batch, new tokens) out of what `generate` returned for prompts of that length."""


@dataclass(frozen=True)
class EncoderDecoder:
    """T5, BART and their like."""

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    decoder_start_token_id: int
    prompt: str = PROMPT

    auto_model = AutoModelForSeq2SeqLM
    task_type = "SEQ_2_SEQ_LM"
    fixed_attention = None
    label_shift = 0

    def encode(self, dialogue: str, summary: str | None = None) -> dict[str, Any]:
        """See `Family`. The tokenizer closes both prompt and summary with its end token."""
        row = _encode_prompt(self.tokenizer, dialogue, self.render, self.max_prompt_tokens)
        if summary is not None:
            row["labels"] = self.tokenizer(text_target=summary, verbose=False)["input_ids"]
        row["length"] = len(row["input_ids"])
        return row

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Family`. Padded on the right; `decoder_input_ids` are the labels one step later.

        They are made here and not by the model, since Trainer takes the labels away when it is given a loss function.
        """
        batch = _pad([row["input_ids"] for row in rows], self.tokenizer.pad_token_id, "right")
        if "labels" in rows[0]:
            targets = [row["labels"] for row in rows]
            shifted = [[self.decoder_start_token_id, *labels[:-1]] for labels in targets]
            batch["decoder_input_ids"] = _pad(shifted, self.tokenizer.pad_token_id, "right")["input_ids"]
            batch["labels"] = _pad(targets, IGNORED, "right")["input_ids"]
            batch["use_cache"] = False  # of no use in training
        return batch

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """See `Family`. Padded to multiples of 64, and with rows that learn nothing where the batch is not full."""
        blank = {"input_ids": rows[0]["input_ids"][:1], "labels": []}
        batch = self.collate([*rows, *[blank] * (batch_size - len(rows))])
        fill = {"labels": IGNORED, "attention_mask": 0}
        pad = self.tokenizer.pad_token_id
        batch = {
            name: _widen(value, fill.get(name, pad)) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        # Of 4 dimensions: transformers makes a mask, or none, by looking at its values, which a graph cannot wait for.
        length = batch["decoder_input_ids"].shape[1]
        batch["decoder_attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        batch["attention_mask"] = batch["attention_mask"].bool()[:, None, None, :]
        return batch

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The decoder's output is the summary."""
        return output_ids

    def render(self, dialogue: str) -> str:
        """See `Family`."""
        return prompt(dialogue, self.prompt)


@dataclass(frozen=True)
class DecoderOnly:
    """Llama, SmolLM2 and their like. Chat models get the prompt through their chat template."""

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    prompt: str = PROMPT

    auto_model = AutoModelForCausalLM
    task_type = "CAUSAL_LM"
    fixed_attention = fast.PACKED
    label_shift = 1

    def encode(self, dialogue: str, summary: str | None = None) -> dict[str, Any]:
        """See `Family`. `input_ids` is the prompt alone, `labels` the summary closed with the end token."""
        row = _encode_prompt(self.tokenizer, dialogue, self.render, self.max_prompt_tokens)
        if summary is not None:
            text = summary if self.tokenizer.chat_template else f" {summary}"
            tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            row["labels"] = [*tokens, self.tokenizer.eos_token_id]
        row["length"] = len(row["input_ids"]) + len(row.get("labels", ()))
        return row

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Family`. Padded on the left, so that all summaries end at the last position.

        The model then computes logits for the last `logits_to_keep` positions only, the longest summary and the token
        before it: the vocabulary of 49,152 words at every position of the prompt would take most of the memory.
        `labels` covers the same positions, masked by length: here the pad token may be the end token itself.
        """
        targets = [row.get("labels", []) for row in rows]
        sequences = [list(row["input_ids"]) + list(labels) for row, labels in zip(rows, targets, strict=True)]
        batch = _pad(sequences, self.tokenizer.pad_token_id, "left")
        batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        if "labels" in rows[0]:
            batch["labels"] = _pad([[IGNORED, *labels] for labels in targets], IGNORED, "left")["input_ids"]
            batch["logits_to_keep"] = batch["labels"].shape[1]
            batch["use_cache"] = False  # of no use in training
        return batch

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """See `Family`. Packed: all dialogues in a row, for `fast.packed_attention`, filled up to a multiple of 1,024.

        `logits_to_keep` has the positions of `collate`'s window, dialogue by dialogue, filled up to a multiple of 512.
        """
        sequences = [list(row["input_ids"]) + list(row["labels"]) for row in rows]
        ends = torch.tensor([len(sequence) for sequence in sequences]).cumsum(0)
        total = _multiple(int(ends[-1]), 1024)
        ids = torch.full((1, total), self.tokenizer.pad_token_id)
        ids[0, : ends[-1]] = torch.tensor([token for sequence in sequences for token in sequence])
        bounds = torch.full((batch_size + 2,), total, dtype=torch.int32)  # what fills up is a sequence of its own
        bounds[0], bounds[1 : len(rows) + 1] = 0, ends
        starts = bounds[:-1].repeat_interleave(bounds.diff())
        kept, labels = [], []
        for row, end in zip(rows, ends.tolist(), strict=True):
            kept += range(end - len(row["labels"]) - 1, end)
            labels += [IGNORED, *row["labels"]]
        missing = _multiple(len(kept), 512) - len(kept)
        longest = int(bounds.diff().max())
        return {
            "input_ids": ids,
            "position_ids": (torch.arange(total) - starts).unsqueeze(0),
            "attention_mask": torch.zeros(1, 1, 1, 1),  # of 4 dimensions: transformers then makes none of its own
            "cu_seq_lens_q": bounds,
            "max_length_q": _multiple(longest, 2048),
            "labels": torch.tensor([labels + [IGNORED] * missing]),
            "logits_to_keep": torch.tensor(kept + [0] * missing),
            "use_cache": False,
        }

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The output repeats the prompt."""
        return output_ids[:, prompt_length:]

    def render(self, dialogue: str) -> str:
        """The prompt as a chat turn, without the system prompt that some templates add (SmolLM2: 30 tokens).

        Rendered behind a system message of our own, which is then cut off: templates add theirs where there is none.
        """
        if not self.tokenizer.chat_template:
            return prompt(dialogue, self.prompt).rstrip()  # the summary begins with the space
        system = [{"role": "system", "content": "-"}]
        user = [{"role": "user", "content": prompt(dialogue, self.prompt)}]
        head = self.tokenizer.apply_chat_template(system, tokenize=False)
        return self.tokenizer.apply_chat_template(
            system + user, tokenize=False, add_generation_prompt=True
        ).removeprefix(head)


def family_of(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, template: str = PROMPT
) -> Family:
    """The family of a model, from its configuration; `template` is the prompt with `{dialogue}` in it."""
    if not config.is_encoder_decoder:
        return DecoderOnly(tokenizer, max_prompt_tokens, template)
    return EncoderDecoder(tokenizer, max_prompt_tokens, getattr(config, "decoder_start_token_id", None), template)


def _pad(sequences: list[list[int]], value: int, side: str) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, both (batch, longest), the mask by length and never by pad id."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), value)
    mask = torch.zeros_like(ids)
    for number, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[number, place] = torch.tensor(sequence, dtype=ids.dtype)
        mask[number, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _widen(ids: torch.Tensor, value: int) -> torch.Tensor:
    """Pad the last dimension on the right to a multiple of 64."""
    return torch.nn.functional.pad(ids, (0, _multiple(ids.shape[1], 64) - ids.shape[1]), value=value)


def _encode_prompt(
    tokenizer: PreTrainedTokenizerBase, dialogue: str, render: Callable[[str], str], limit: int
) -> dict[str, Any]:
    """The prompt's tokens; a dialogue that is too long loses its end, the words around it stay."""
    tokens = tokenizer(render(dialogue), verbose=False)["input_ids"]
    if len(tokens) <= limit:
        return {"input_ids": tokens, "truncated": False}
    encoded = tokenizer(dialogue, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    keep = len(ends) - (len(tokens) - limit)
    while keep > 0:
        tokens = tokenizer(render(dialogue[: ends[keep - 1]]), verbose=False)["input_ids"]
        if len(tokens) <= limit:
            return {"input_ids": tokens, "truncated": True}
        keep -= len(tokens) - limit
    raise ValueError(f"max_prompt_tokens = {limit} leaves no room for the dialogue: the words around it fill it.")
