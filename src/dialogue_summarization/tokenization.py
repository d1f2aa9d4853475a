"""The two families of models. All that differs between encoder-decoder and decoder-only models is here.

An encoder-decoder model (T5, BART) reads the prompt in its encoder and writes the summary with its decoder. A
decoder-only model (SmolLM2, Llama) continues the prompt: prompt and summary are one sequence, and the loss is on the
summary alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from . import fast
from .memory import ROW, TARGETS, multiple
from .prompts import PROMPT, prompt

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out
_STEPS = {"input_ids": 64, "attention_mask": 64, "decoder_input_ids": 32, "labels": 32}  # tokens, in `fixed` batches
_HERE = "\ue000"  # stands for a dialogue: no template trims it, no dialogue has it


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

    def encode_all(self, dialogues: Sequence[str], summaries: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What `encode` gives for each dialogue and its summary, tokenized together, which is several times as fast."""

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of encoded dialogues, padded to its longest, as the arguments of the model's forward pass."""

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """The same batch in one of a few shapes, for compiled steps; equal in loss and gradients to `collate`."""

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """The tokens of the summary (batch, new tokens) out of what `generate` returned for prompts of that length."""

    def continued(
        self, network: torch.nn.Module, prompts: dict[str, torch.Tensor], labels: torch.Tensor, owners: torch.Tensor
    ) -> torch.Tensor:
        """Logits (summaries, tokens, vocabulary) for `labels` (summaries, tokens), padded on the right with `IGNORED`.

        Summary i follows prompt `owners[i]` of a batch from `collate`, which is read once for all that follow it.
        """


@dataclass(frozen=True)
class EncoderDecoder:
    """BART, PEGASUS and their like."""

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
        return self.encode_all([dialogue], None if summary is None else [summary])[0]

    def encode_all(self, dialogues: Sequence[str], summaries: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """See `Family`."""
        rows = _encode_prompts(self.tokenizer, dialogues, self._around, self.max_prompt_tokens)
        if summaries:
            targets = self.tokenizer(text_target=list(summaries), return_attention_mask=False, verbose=False)
            for row, labels in zip(rows, targets["input_ids"], strict=True):
                row["labels"] = labels
        return rows

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Family`. Padded on the right; `decoder_input_ids` are the labels one step later.

        They are made here and not by the model, since Trainer takes the labels away when it is given a loss function.
        """
        batch = _pad([row["input_ids"] for row in rows], self.tokenizer.pad_token_id, "right")
        if "labels" in rows[0]:
            shifted, targets = self._written(rows)
            batch["decoder_input_ids"] = _pad(shifted, self.tokenizer.pad_token_id, "right")["input_ids"]
            batch["labels"] = _pad(targets, IGNORED, "right")["input_ids"]
            batch["use_cache"] = False  # of no use in training
        return batch

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """See `Family`. Padded to multiples of `_STEPS`, and with rows that learn nothing where it is not full."""
        blank = {"input_ids": rows[0]["input_ids"][:1], "labels": []}
        batch = self.collate([*rows, *[blank] * (batch_size - len(rows))])
        fill = {"labels": IGNORED, "attention_mask": 0}
        pad = self.tokenizer.pad_token_id
        batch = {
            name: _widen(value, fill.get(name, pad), _STEPS[name]) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        # Of 4 dimensions: transformers makes a mask, or none, by looking at its values, which a graph cannot wait for.
        length = batch["decoder_input_ids"].shape[1]
        batch["decoder_attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        batch["attention_mask"] = batch["attention_mask"].bool()[:, None, None, :]
        return batch

    def _written(self, rows: list[dict[str, Any]]) -> tuple[list[list[int]], list[list[int]]]:
        """What the decoder reads for each row, and what it learns: one token at least, which may be none to learn."""
        targets = [row["labels"] or [IGNORED] for row in rows]
        return [[self.decoder_start_token_id, *labels[:-1]] for labels in targets], targets

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The decoder's output is the summary."""
        return output_ids

    def continued(
        self, network: torch.nn.Module, prompts: dict[str, torch.Tensor], labels: torch.Tensor, owners: torch.Tensor
    ) -> torch.Tensor:
        """See `Family`. The encoder's states serve every summary of a dialogue."""
        hidden = network.get_encoder()(**prompts).last_hidden_state
        begun = torch.nn.functional.pad(labels[:, :-1], (1, 0), value=self.decoder_start_token_id)
        return network(
            encoder_outputs=(hidden[owners],),
            attention_mask=prompts["attention_mask"][owners],
            decoder_input_ids=begun.masked_fill(begun == IGNORED, self.tokenizer.pad_token_id),
            use_cache=False,
        ).logits

    def render(self, dialogue: str) -> str:
        """See `Family`."""
        return dialogue.join(self._around)

    @cached_property
    def _around(self) -> tuple[str, str]:
        return _split(prompt(_HERE, self.prompt))


@dataclass(frozen=True)
class T5(EncoderDecoder):
    """T5, whose positions are a bias on attention's scores: dialogues in one row do not see one another's."""

    fixed_attention = fast.BIASED

    def fixed(self, rows: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
        """See `Family`. Packed: all prompts in a row, all summaries in another, for `fast.biased_attention`.

        They are filled up to multiples of `ROW` and `TARGETS`; `*_longest` are multiples of half as many, and no less.
        """
        shifted, targets = self._written(rows)
        prompts = [row["input_ids"] for row in rows]
        prompt_longest, summary_longest = _longest(prompts, ROW // 2), _longest(targets, TARGETS // 2)
        count = batch_size + 2  # two of the longest fill up either row
        ids, prompt_bounds = _in_a_row(prompts, self.tokenizer.pad_token_id, ROW, count, prompt_longest)
        read, summary_bounds = _in_a_row(shifted, self.tokenizer.pad_token_id, TARGETS, count, summary_longest)
        nothing = torch.zeros(1, 1, 1, 1)  # of 4 dimensions: transformers then makes no masks of its own
        return {
            "input_ids": ids,
            "attention_mask": nothing,
            "decoder_input_ids": read,
            "decoder_attention_mask": nothing,
            "labels": _in_a_row(targets, IGNORED, TARGETS, count, summary_longest)[0],
            "prompt_bounds": prompt_bounds,
            "summary_bounds": summary_bounds,
            "prompt_longest": prompt_longest,
            "summary_longest": summary_longest,
            "use_cache": False,
        }


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
        return self.encode_all([dialogue], None if summary is None else [summary])[0]

    def encode_all(self, dialogues: Sequence[str], summaries: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """See `Family`."""
        rows = _encode_prompts(self.tokenizer, dialogues, self._around, self.max_prompt_tokens)
        if summaries:
            texts = [summary if self.tokenizer.chat_template else f" {summary}" for summary in summaries]
            for row, labels in zip(rows, _tokens(self.tokenizer, texts, special=False), strict=True):
                row["labels"] = [*labels, self.tokenizer.eos_token_id]
                row["length"] += len(row["labels"])
        return rows

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
        """See `Family`. Packed: all dialogues in a row, for `fast.packed_attention`, filled up to a multiple of `ROW`.

        `logits_to_keep` has the positions of `collate`'s window, dialogue by dialogue, filled up to one of `TARGETS`.
        """
        sequences = [list(row["input_ids"]) + list(row["labels"]) for row in rows]
        longest = _longest(sequences, 2048)
        ids, bounds = _in_a_row(sequences, self.tokenizer.pad_token_id, ROW, batch_size + 1, longest)
        starts = bounds[:-1].repeat_interleave(bounds.diff())
        kept, labels = [], []
        for row, end in zip(rows, bounds[1:].tolist(), strict=False):
            kept += range(end - len(row["labels"]) - 1, end)
            labels += [IGNORED, *row["labels"]]
        missing = multiple(len(kept), TARGETS) - len(kept)
        return {
            "input_ids": ids,
            "position_ids": (torch.arange(len(starts)) - starts).unsqueeze(0),
            "attention_mask": torch.zeros(1, 1, 1, 1),  # of 4 dimensions: transformers then makes none of its own
            "cu_seq_lens_q": bounds,
            "max_length_q": longest,
            "labels": torch.tensor([labels + [IGNORED] * missing]),
            "logits_to_keep": torch.tensor(kept + [0] * missing),
            "use_cache": False,
        }

    def completion(self, output_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        """See `Family`. The output repeats the prompt."""
        return output_ids[:, prompt_length:]

    def continued(
        self, network: torch.nn.Module, prompts: dict[str, torch.Tensor], labels: torch.Tensor, owners: torch.Tensor
    ) -> torch.Tensor:
        """See `Family`. Summaries go on from the prompts' keys and values; the prompt predicts the first token."""
        read = network(**prompts, use_cache=True, logits_to_keep=1)
        read.past_key_values.batch_select_indices(owners)
        begun, seen = labels[:, :-1], prompts["attention_mask"][owners]
        following = network(
            input_ids=begun.masked_fill(begun == IGNORED, self.tokenizer.pad_token_id),
            attention_mask=torch.cat([seen, (begun != IGNORED).to(seen.dtype)], dim=1),
            position_ids=seen.sum(dim=1, keepdim=True) + torch.arange(begun.shape[1], device=seen.device),
            past_key_values=read.past_key_values,
        )
        return torch.cat([read.logits[owners], following.logits], dim=1)

    def render(self, dialogue: str) -> str:
        """See `Family`."""
        return dialogue.join(self._around)

    @cached_property
    def _around(self) -> tuple[str, str]:
        """What stands before and behind a dialogue: the prompt as a chat turn, without a default system prompt.

        Some templates add one where there is none (SmolLM2: 30 tokens), so the turn is rendered behind a system message
        of our own, which is then cut off.
        """
        if not self.tokenizer.chat_template:
            before, after = _split(prompt(_HERE, self.prompt))
            return before, after.rstrip()  # the summary begins with the space
        system = [{"role": "system", "content": "-"}]
        user = [{"role": "user", "content": prompt(_HERE, self.prompt)}]
        head = self.tokenizer.apply_chat_template(system, tokenize=False)
        whole = self.tokenizer.apply_chat_template(system + user, tokenize=False, add_generation_prompt=True)
        return _split(whole.removeprefix(head))


def family_of(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, template: str = PROMPT
) -> Family:
    """The family of a model, from its configuration; `template` is the prompt with `{dialogue}` in it."""
    if not config.is_encoder_decoder:
        return DecoderOnly(tokenizer, max_prompt_tokens, template)
    family = T5 if config.model_type == "t5" else EncoderDecoder
    return family(tokenizer, max_prompt_tokens, getattr(config, "decoder_start_token_id", None), template)


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


def _longest(sequences: list[list[int]], step: int) -> int:
    """The length of the longest, rounded up, so that there are few."""
    return multiple(max(map(len, sequences)), step)


def _in_a_row(
    sequences: list[list[int]], value: int, step: int, count: int, longest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences one after another, (1, tokens), filled up to a multiple of `step`, and where each begins and ends.

    Those bounds are int32, (count + 1,): what fills up are sequences of their own, of at most `longest` tokens.
    """
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    row = torch.full((1, multiple(len(tokens), step)), value)
    row[0, : len(tokens)] = tokens
    lengths = [len(sequence) for sequence in sequences] + [longest] * (count - len(sequences))
    bounds = torch.tensor([0, *lengths]).cumsum(0).clamp(max=row.shape[1])
    return row, bounds.to(torch.int32)


def _widen(ids: torch.Tensor, value: int, step: int) -> torch.Tensor:
    """Pad the last dimension on the right to a multiple."""
    return torch.nn.functional.pad(ids, (0, multiple(ids.shape[1], step) - ids.shape[1]), value=value)


def _split(rendered: str) -> tuple[str, str]:
    before, _, after = rendered.partition(_HERE)
    return before, after


def _encode_prompts(
    tokenizer: PreTrainedTokenizerBase, dialogues: Sequence[str], around: tuple[str, str], limit: int
) -> list[dict[str, Any]]:
    """Rows without labels; a dialogue that is too long loses its end, the words around it stay."""
    before, after = around
    encoded = _tokens(tokenizer, [before + dialogue + after for dialogue in dialogues])
    rows = []
    for dialogue, tokens in zip(dialogues, encoded, strict=True):
        truncated = len(tokens) > limit
        if truncated:
            tokens = _cut(tokenizer, dialogue, around, len(tokens), limit)
        rows.append({"input_ids": tokens, "truncated": truncated, "length": len(tokens)})
    return rows


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool = True) -> list[list[int]]:
    """The token ids that the tokenizer gives; by its backend, which need not find each token's place in the text."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=special)]


def _cut(
    tokenizer: PreTrainedTokenizerBase, dialogue: str, around: tuple[str, str], length: int, limit: int
) -> list[int]:
    """The prompt of a dialogue cut at its end, in at most `limit` tokens; whole, it has `length`."""
    before, after = around
    encoded = tokenizer(dialogue, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in encoded["offset_mapping"]]
    keep = len(ends) - (length - limit)
    while keep > 0:
        tokens = tokenizer(before + dialogue[: ends[keep - 1]] + after, verbose=False)["input_ids"]
        if len(tokens) <= limit:
            return tokens
        keep -= len(tokens) - limit
    raise ValueError(f"max_prompt_tokens = {limit} leaves no room for the dialogue: the words around it fill it.")
