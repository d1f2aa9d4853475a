"""The base models whose architectures the tests run: their short names, and the memory they take."""

from argparse import Namespace
from dataclasses import dataclass

from ..experiments import VIRTUAL_TOKENS

# Without activations, which grow with batch and length. Weights are fp32: 4 bytes. Full fine-tuning adds gradients and
# AdamW's two moments: 16. With LoRA only the adapter has them, at most 2 % of the parameters.
BYTES_PER_PARAMETER = {"use": 4, "LoRA": 4 + 0.02 * 16, "full": 16}


@dataclass(frozen=True)
class BaseModel:
    """A base model on the Hugging Face Hub."""

    hub_id: str
    architecture: str  # the `model_type` of its configuration
    parameters: int  # tied ones once
    prompt: str  # in a turn of its chat template, as an instruction, or to learn: zero-shot, it writes no summaries
    max_prompt_tokens: int  # the longest prompt that it takes, or was made for; of chat models hardly any is longer

    def gb(self, use: str) -> float:
        """GB (10^9 bytes) that a use takes, one of `BYTES_PER_PARAMETER`."""
        return self.parameters * BYTES_PER_PARAMETER[use] / 1e9

    def fits(self, free_bytes: int) -> str:
        """The most that it can be put to in so much memory: full, LoRA, use, or no."""
        return next((use for use in ("full", "LoRA", "use") if self.gb(use) * 1e9 <= free_bytes), "no")


_POSITIONS = 1024 - VIRTUAL_TOKENS  # BART and PEGASUS have 1,024, and prompt tuning needs some

BASE_MODELS: dict[str, BaseModel] = {
    model.hub_id.rpartition("/")[2]: model
    for model in (
        BaseModel("google/flan-t5-small", "t5", 76_961_152, "instruction", 512),
        BaseModel("google/flan-t5-base", "t5", 247_577_856, "instruction", 512),
        BaseModel("google/flan-t5-large", "t5", 783_150_080, "instruction", 512),
        BaseModel("google/flan-t5-xl", "t5", 2_849_757_184, "instruction", 512),
        BaseModel("google/t5-v1_1-base", "t5", 247_577_856, "to learn", 512),
        BaseModel("facebook/bart-base", "bart", 139_420_416, "to learn", _POSITIONS),
        BaseModel("facebook/bart-large", "bart", 406_291_456, "to learn", _POSITIONS),
        BaseModel("google/pegasus-large", "pegasus", 570_797_056, "to learn", _POSITIONS),
        BaseModel("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 134_515_008, "chat", 1024),
        BaseModel("HuggingFaceTB/SmolLM2-360M-Instruct", "llama", 361_821_120, "chat", 1024),
        BaseModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", 1_711_376_384, "chat", 1024),
        BaseModel("Qwen/Qwen2.5-0.5B-Instruct", "qwen2", 494_032_768, "chat", 1024),
        BaseModel("Qwen/Qwen3-0.6B", "qwen3", 596_049_920, "chat", 1024),
        BaseModel("meta-llama/Llama-3.2-1B-Instruct", "llama", 1_235_814_400, "chat", 1024),  # behind a licence
    )
}


def print_models(_: Namespace) -> None:
    """Print a row per base model, and whether it fits this machine."""
    import pandas as pd

    from .. import hardware

    free, rows = hardware.free_memory(), {}
    for name, model in BASE_MODELS.items():
        sizes = {f"{use} (GB)": f"{model.gb(use):.1f}" for use in BYTES_PER_PARAMETER}
        row = {"parameters": f"{model.parameters:,}", "prompt": model.prompt, "tokens": f"{model.max_prompt_tokens:,}"}
        rows[name] = {**row, **sizes, "fits here": model.fits(free)}
    print(pd.DataFrame(rows).T.to_string())
    print(f"\nFree here: {free / 1e9:.1f} GB ({hardware.describe()['device']}). In fp32; activations come on top.")
