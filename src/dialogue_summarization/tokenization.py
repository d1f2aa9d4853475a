"""The two families of models: all that differs between encoder-decoder and decoder-only models is here.

An encoder-decoder model (T5, BART) reads the prompt in its encoder and generates the summary with its decoder. A
decoder-only model (SmolLM2, Llama) continues the prompt: they are one sequence, with the loss on the summary alone.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedTokenizerBase

from .errors import ConfigurationError, DataError, ModelError
from .experiments import VIRTUAL_TOKENS
from .model_checks import require_known_script
from .prompts import PROMPT
from .text_encoding import TextEncoder
from .texts import unified

IGNORE_INDEX = -100  # the label that PyTorch's cross-entropy leaves out
_SYSTEM = "\ue001"  # a system message, to be found again
_PLACEHOLDER = "\ue000"  # stands for a dialogue: no chat template trims it, no dialogue contains it


@dataclass(frozen=True)
class Family:
    """How a kind of model reads prompts, learns summaries and generates them."""

    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    prompt: str = PROMPT
    positions: int | None = None  # that the model has for a sequence; None: any number

    auto_model: ClassVar[type]  # the transformers class that loads such a model
    label_shift: ClassVar[int]  # logits at position i are scored against the label at position i + label_shift

    def render(self, dialogue: str) -> str:
        """A dialogue as the text that the tokenizer gets."""
        before, after = self._prompt_affixes
        return before + dialogue + after

    def prompt_length(self, dialogue: str) -> int:
        """The tokens of a dialogue's prompt, before it is cut to `max_prompt_tokens`."""
        return len(self._encoder.encode([unified(dialogue)], self._prompt_affixes)[0])

    def encode(self, dialogue: str, summary: str | None = None) -> dict[str, Any]:
        """A dialogue, and the summary to learn, as one row of `encode_all`."""
        return self.encode_all([dialogue], None if summary is None else [summary])[0]

    def encode_all(self, dialogues: Sequence[str], summaries: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Dialogues, and the summaries to learn, as token ids: a row per dialogue.

        A row has `input_ids` (the prompt), `labels` (the summary and the end token, where summaries are given),
        `length` in tokens by which batches are grouped, and `truncated`: whether the dialogue lost its end to fit.
        Raises `ConfigurationError` where `max_prompt_tokens` leaves no room for a dialogue, `DataError` where a summary
        is longer than the model has positions, or the tokenizer does not know the texts' script.
        """
        rows = []
        dialogues, summaries = (list(map(unified, texts or ())) for texts in (dialogues, summaries))
        for texts in (dialogues, summaries):
            require_known_script(self.tokenizer, texts[:: max(1, len(texts) // 50)])
        encoded = self._encoder.encode(dialogues, self._prompt_affixes)
        for dialogue, ids in zip(dialogues, encoded, strict=True):
            is_long = len(ids) > self.max_prompt_tokens
            kept = self._truncate(dialogue, len(ids)) if is_long else ids
            rows.append({"input_ids": kept, "truncated": is_long, "length": len(kept)})
        if not summaries:
            return rows
        room = (self.positions or math.inf) - VIRTUAL_TOKENS
        for row, summary, labels in zip(rows, summaries, self._encode_summaries(summaries), strict=True):
            row["labels"] = labels
            row["length"] += self.label_shift * len(labels)  # decoder-only: they come behind the prompt
            length = self.label_shift * len(row["input_ids"]) + len(labels)
            if length > room:
                said = f"the summary that begins {summary[:60]!r} takes {length:,}: shorten it, or leave its row out"
                raise DataError(f"The model has positions for {room:,} tokens, and {said}.")
        return rows

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of encoded rows, padded to its longest, as the arguments of the model's forward pass.

        Tensors are (batch, tokens). The attention mask, and the masking of labels with `IGNORE_INDEX`, go by length and
        never by pad token, which may be the end token.
        """
        raise NotImplementedError

    def generated_ids(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """The summary's tokens (batch, new tokens) in what `generate` returned for prompts of that padded length."""
        raise NotImplementedError

    def _encode_summaries(self, summaries: Sequence[str]) -> list[list[int]]:
        raise NotImplementedError

    def _inputs(self, sequences: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        mask = [[1] * len(sequence) for sequence in sequences]
        ids = _pad(sequences, self.tokenizer.pad_token_id, side)
        return {"input_ids": ids, "attention_mask": _pad(mask, 0, side)}

    @cached_property
    def _prompt_affixes(self) -> tuple[str, str]:
        """What stands before and behind a dialogue."""
        before, *after = self._wrapped_prompt(self.prompt.replace("{dialogue}", _PLACEHOLDER)).split(_PLACEHOLDER)
        if len(after) != 1:
            raise ModelError("The model's chat template does not show its message as it is: mend or remove it.")
        return before, after[0]

    def _wrapped_prompt(self, text: str) -> str:
        return text

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer)

    def _truncate(self, dialogue: str, whole_length: int) -> list[int]:
        """The prompt of a dialogue cut at its end to `max_prompt_tokens`; the words around the dialogue stay."""
        ends = self._encoder.token_ends(dialogue)
        kept = len(ends) - (whole_length - self.max_prompt_tokens)
        while kept > 0:
            [ids] = self._encoder.encode([dialogue[: ends[kept - 1]]], self._prompt_affixes)
            if len(ids) <= self.max_prompt_tokens:
                return ids
            kept -= len(ids) - self.max_prompt_tokens
        raise ConfigurationError(f"max_prompt_tokens = {self.max_prompt_tokens} leaves no room for the dialogue.")


@dataclass(frozen=True)
class EncoderDecoder(Family):
    """T5, BART, PEGASUS and their like. The tokenizer closes both prompt and summary with its end token."""

    decoder_start_token_id: int | None = None

    auto_model = AutoModelForSeq2SeqLM
    label_shift = 0

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Family`. Padded on the right; `decoder_input_ids` are the labels shifted one position to the right.

        They are made here and not by the model, since Trainer takes the labels away when it is given a loss function.
        """
        batch = self._inputs([row["input_ids"] for row in rows], "right")
        if "labels" in rows[0]:
            decoder_inputs, labels = self.decoder_inputs_and_labels(rows)
            batch["decoder_input_ids"] = _pad(decoder_inputs, self.tokenizer.pad_token_id, "right")
            batch["labels"] = _pad(labels, IGNORE_INDEX, "right")
            batch["use_cache"] = False  # of no use in training
        return batch

    def decoder_inputs_and_labels(self, rows: list[dict[str, Any]]) -> tuple[list[list[int]], list[list[int]]]:
        """What the decoder reads and what it learns, per row: at least one token, which may be one to ignore."""
        labels = [row["labels"] or [IGNORE_INDEX] for row in rows]
        return [[self.decoder_start_token_id, *ids[:-1]] for ids in labels], labels

    def generated_ids(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The decoder's output is the summary."""
        return output_ids

    def _encode_summaries(self, summaries: Sequence[str]) -> list[list[int]]:
        return self._encoder.encode(summaries)


@dataclass(frozen=True)
class DecoderOnly(Family):
    """Llama, SmolLM2 and their like. Chat models get the prompt through their chat template."""

    auto_model = AutoModelForCausalLM
    label_shift = 1

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Family`. Padded on the left, so that all summaries end at the last position.

        The model then computes logits for the last `logits_to_keep` positions only, the longest summary and the token
        before it: a vocabulary of 49,152 words at every position of the prompt would take most of the memory. `labels`
        covers the same positions.
        """
        labels = [row.get("labels", []) for row in rows]
        sequences = [[*row["input_ids"], *ids] for row, ids in zip(rows, labels, strict=True)]
        batch = self._inputs(sequences, "left")
        batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        if "labels" in rows[0]:
            batch["labels"] = _pad([[IGNORE_INDEX, *ids] for ids in labels], IGNORE_INDEX, "left")
            batch["logits_to_keep"] = batch["labels"].shape[1]
            batch["use_cache"] = False  # of no use in training
        return batch

    def generated_ids(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The output repeats the prompt."""
        return output_ids[:, prompt_length:]

    def _encode_summaries(self, summaries: Sequence[str]) -> list[list[int]]:
        texts = [summary if self.tokenizer.chat_template else f" {summary}" for summary in summaries]
        return [[*ids, self.tokenizer.eos_token_id] for ids in self._encoder.encode(texts, special_tokens=False)]

    def _wrapped_prompt(self, text: str) -> str:
        """The prompt as a chat turn, without a default system prompt.

        Some templates add a system prompt where there is none (SmolLM2: 30 tokens). So the turn is rendered behind a
        system message of our own, which is then cut off; alone where a template has no place for one, or puts it into
        the turn (Gemma, Llama 2). Raises `ModelError` where the template cannot be used.
        """
        if not self.tokenizer.chat_template:
            return text.rstrip()  # the summary begins with the space
        system, user = [{"role": "system", "content": _SYSTEM}], [{"role": "user", "content": text}]
        render = partial(self.tokenizer.apply_chat_template, tokenize=False)
        with contextlib.suppress(TemplateError):
            chat = render(system + user, add_generation_prompt=True).removeprefix(render(system))
            if _SYSTEM not in chat:
                return chat
        try:
            alone = render(user, add_generation_prompt=True)
        except TemplateError as error:
            raise ModelError(f"The model's chat template cannot be used: {error}") from error
        start = self.tokenizer.bos_token_id  # which most tokenizers put before every text themselves
        return alone.removeprefix(self.tokenizer.bos_token) if start in self.tokenizer("")["input_ids"] else alone


def family_of(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    template: str = PROMPT,
    max_new_tokens: int = 0,
) -> Family:
    """The family of a model, from its configuration. Prompts are no longer than the model takes.

    `max_prompt_tokens` is the experiment's limit, `template` its prompt with `{dialogue}` in it, `max_new_tokens` what
    a summary may have, which in a decoder-only model comes behind the prompt.
    """
    limit = getattr(config, "n_positions", max_prompt_tokens)  # T5: what it was pre-trained on
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        limit = positions - VIRTUAL_TOKENS - (0 if config.is_encoder_decoder else max_new_tokens)
    limit = min(limit, max_prompt_tokens)
    if config.is_encoder_decoder:
        return EncoderDecoder(tokenizer, limit, template, positions, getattr(config, "decoder_start_token_id", None))
    return DecoderOnly(tokenizer, limit, template, positions)


def _pad(sequences: list[list[int]], value: int, side: str) -> torch.Tensor:
    tensors = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
