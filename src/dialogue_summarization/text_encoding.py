"""Token ids of people's texts. What looks like a control token there, as `<|im_end|>` in a dialogue, is text."""

import json
import re
from collections.abc import Sequence
from functools import cached_property

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"<\S+>")


class TextEncoder:
    """Encodes texts between affixes, such as a prompt's; control tokens are those of the affixes alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # The backend is several times as fast as the tokenizer, since it need not locate each token in the text.
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._unknown = tokenizer.unk_token
        added = self._backend.get_added_tokens_decoder().items()
        # Some are not marked as special, as Qwen's `<think>`.
        self._control_ids = {number for number, token in added if token.special or _TAG.fullmatch(token.content)}
        self._counted_ids = self._control_ids - {tokenizer.unk_token_id}  # <unk> is no sign of a control token

    def encode(
        self, texts: Sequence[str], affixes: tuple[str, str] = ("", ""), *, special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of each text; with `special_tokens` those that the tokenizer puts around it."""
        self._backend.no_truncation()
        self._backend.no_padding()
        before, after = affixes
        own = self._control_count(self._backend.encode(before + after, add_special_tokens=special_tokens))
        whole = [before + text + after for text in texts]
        encodings = self._backend.encode_batch_fast(whole, add_special_tokens=special_tokens)
        return [
            self._as_plain_text(text, affixes, special_tokens)
            if self._control_count(encoding) != own or (self._unknown and self._unknown in text)
            else encoding.ids
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def token_ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        if self._control_count(encoding):
            encoding = self._plain_backend.encode(text, add_special_tokens=False)
        return [end for _, end in encoding.offsets]

    def _control_count(self, encoding: Encoding) -> int:
        return sum(map(self._counted_ids.__contains__, encoding.ids))

    def _as_plain_text(self, text: str, affixes: tuple[str, str], special_tokens: bool) -> list[int]:
        before, after = affixes
        end = max((end for _, end in self._control_spans(before)), default=0)
        start = min((start for start, _ in self._control_spans(after)), default=len(after))
        parts = [
            self._backend.encode(before[:end], add_special_tokens=False),
            self._plain_backend.encode(before[end:] + text + after[:start], add_special_tokens=False),
            self._backend.encode(after[start:], add_special_tokens=False),
        ]
        return self._backend.post_process(Encoding.merge(parts), None, special_tokens).ids

    def _control_spans(self, text: str) -> list[tuple[int, int]]:
        encoding = self._backend.encode(text, add_special_tokens=False)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [span for number, span in spans if number in self._counted_ids]

    @cached_property
    def _plain_backend(self) -> Tokenizer:
        """The tokenizer with control tokens of other names, which no text holds and no vocabulary spells."""
        content = json.loads(self._backend.to_str())
        model, added = content["model"], content["added_tokens"]
        names = {token["content"]: f"\ue000{token['id']}" for token in added if token["id"] in self._control_ids}
        for token in added:
            token["content"] = names.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:  # Unigram
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        return Tokenizer.from_str(json.dumps(content))
