"""The further methods: PEFT's other adapters, virtual tokens, quantized bases, parts of the model, LoRA+."""
