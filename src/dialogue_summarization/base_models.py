"""Base models that the study knows by name: `study models` lists them, `--model NAME` takes one.

Plain data, so that listing it imports nothing heavy. `tests/test_base_models.py` counts their weights anew from their
configurations. Any other model of an architecture in `architectures.TARGETS` serves too, by its Hub id or folder.
"""

from dataclasses import dataclass

from .methods import VIRTUAL_TOKENS

GIB = 1 << 30
# Bytes a weight, without activations, which grow with batch and length. Weights are fp32: 4. Training all adds their
# gradients and AdamW's two moments: 16. Of an adapter, at most 2 % of the
# weights for lora-balanced, each takes 16.
BYTES = {"use": 4, "LoRA": 4 + 0.02 * 16, "full": 16}


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    `prompt` is how it takes the prompt's words, which are the same for all: in a turn of its `chat` template, as an
    `instruction` that it was tuned to follow, or `to learn`, since it was not: zero-shot, it writes no summaries.
    `max_prompt_tokens` is the longest prompt that it takes, or was made for. `precision` is what it can compute in;
    BART was made in fp16 (fairseq, examples/bart), T5 overflows in it (transformers issue 14189).
    Nothing here takes fp16.
    """

    source: str  # on the Hugging Face Hub
    architecture: str  # as in architectures.TARGETS
    parameters: int  # tied weights once
    prompt: str
    max_prompt_tokens: int
    precision: str = "bf16, fp32"

    @property
    def name(self) -> str:
        """The last part of its Hub id."""
        return self.source.rpartition("/")[2]

    def gib(self, what: str) -> float:
        """GiB that it takes to `use` it, or to train it with `LoRA` or in `full`."""
        return self.parameters * BYTES[what] / GIB

    def fits(self, free: int) -> str:
        """The most that it can be put to in so many free bytes: full, LoRA, use, or no."""
        return next((what for what in ("full", "LoRA", "use") if self.gib(what) * GIB <= free), "no")


_POSITIONS = 1024 - VIRTUAL_TOKENS  # BART and PEGASUS have 1,024, and prompt tuning needs some
_CHAT = 1024  # positions reach much further (8,192 and more); hardly any dialogue does

BASE_MODELS: dict[str, BaseModel] = {
    model.name: model
    for model in (
        # Relative positions without an end; pre-trained on 512 tokens.
        BaseModel("google/flan-t5-small", "t5", 76_961_152, "instruction", 512),
        BaseModel("google/flan-t5-base", "t5", 247_577_856, "instruction", 512),
        BaseModel("google/flan-t5-large", "t5", 783_150_080, "instruction", 512),
        BaseModel("google/flan-t5-xl", "t5", 2_849_757_184, "instruction", 512),
        BaseModel("google/t5-v1_1-base", "t5", 247_577_856, "to learn", 512),
        BaseModel("facebook/bart-base", "bart", 139_420_416, "to learn", _POSITIONS, "bf16, fp16, fp32"),
        BaseModel("facebook/bart-large", "bart", 406_291_456, "to learn", _POSITIONS, "bf16, fp16, fp32"),
        BaseModel("google/pegasus-large", "pegasus", 570_797_056, "to learn", _POSITIONS),
        BaseModel("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 134_515_008, "chat", _CHAT),
        BaseModel("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", 361_821_120, "chat", _CHAT),
        BaseModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", 1_711_376_384, "chat", _CHAT),
        BaseModel("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 494_032_768, "chat", _CHAT),
        BaseModel("Qwen/Qwen3-0.6B", "qwen3", 596_049_920, "chat", _CHAT),
        BaseModel(
            "meta-llama/Llama-3.2-1B-Instruct", "llama", 1_235_814_400, "chat", _CHAT
        ),  # after accepting a licence
    )
}


def table(free: int) -> str:
    """The models as lines of text: weights, prompt, length limit, precision, GiB by use, what fits in `free` bytes."""
    heads = ("model", "weights", "prompt", "tokens", "precision", *(f"{what} GiB" for what in BYTES), "fits here")
    rows = [
        (
            model.name,
            f"{model.parameters:,}",
            model.prompt,
            f"{model.max_prompt_tokens:,}",
            model.precision,
            *(f"{model.gib(what):.1f}" for what in BYTES),
            model.fits(free),
        )
        for model in BASE_MODELS.values()
    ]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in (heads, *rows))


def title(model: str) -> str:
    """What a model of module `benchmark` is called in tables: smollm2, or a FLAN-T5 shape as t5-base."""
    return {"smollm2": "SmolLM2-135M"}.get(model, f"FLAN-{model.title().replace('Xl', 'XL')}'s shape")
