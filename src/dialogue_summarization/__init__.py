"""Fine-tune small language models to summarize dialogues, and compare zero-shot, full fine-tuning and LoRA."""

__version__ = "0.1.0"
