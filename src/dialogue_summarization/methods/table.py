"""The named methods that the core does not have. An entry states what differs from the defaults.

Learning rates are starting points, as multiples of the experiment's. PEFT's own comparison has 1e-4 for LoRA, 1e-3 for
prompt and prefix tuning and 5e-3 for IA3 (method_comparison/MetaMathQA in its repository). Our LoRA learns at 1e-3 to
4e-3, so the multiples are smaller here. Bottleneck adapters (Houlsby et al. 2019) are not in PEFT.
"""

from ..experiments import ALL_LINEAR, ATTENTION, VIRTUAL_TOKENS, Method, lora

_IA3 = {
    "peft_type": "IA3",
    "target_modules": ("key", "value", "mlp_out"),
    "feedforward_modules": ("mlp_out",),
}
_PROMPT_TUNING = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": VIRTUAL_TOKENS,
    "prompt_tuning_init": "SAMPLE_VOCAB",
}

FURTHER_METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # Variants of lora-balanced, each with one thing changed.
        Method("dora", lora(16, ATTENTION, use_dora=True)),  # Liu et al. 2024, arXiv 2402.09353
        # Scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732), which differs from alpha / r where the rank
        # is high: 16 / sqrt(64) = 2 is the presets' scale, so that their learning rate serves.
        Method("rslora", lora(64, ATTENTION, use_rslora=True, lora_alpha=16)),
        # Starts from the largest singular vectors of the weights (Meng et al. 2024, arXiv 2404.02948), with alpha = r.
        # The full decomposition, since the fast one is random: loading an adapter must subtract the same matrix.
        Method("pissa", lora(16, ATTENTION, init_lora_weights="pissa", lora_alpha=16), lr_multiplier=0.25),
        # Hayou et al. 2024, arXiv 2402.12354: ratio 16. PEFT advises half of a usual rate for A; ours is high.
        Method("lora-plus", lora(16, ATTENTION), lr_multiplier=0.25, loraplus_ratio=16.0),
        # Fixed random matrices and a trained scale per row (Kopiczko et al. 2023, arXiv 2310.11454), at ten times
        # LoRA's rate. The matrices are saved too: a seed does not reproduce them everywhere.
        Method("vera", {"peft_type": "VERA", "r": 256, "target_modules": ("query", "value")}, lr_multiplier=10),
        # Kronecker products (Yeh et al. 2023, arXiv 2309.14859).
        Method("lokr", {"peft_type": "LOKR", "r": 16, "alpha": 16, "target_modules": ATTENTION}),
        # Rotations of the inputs (Qiu et al. 2023, arXiv 2306.07280; Liu et al. 2023, arXiv 2311.06243).
        Method("oft", {"peft_type": "OFT", "r": 0, "oft_block_size": 16, "target_modules": ATTENTION}),
        # A factor per key, value and hidden unit (Liu et al. 2022, arXiv 2205.05638: rate 3e-3).
        Method("ia3", _IA3, lr_multiplier=5),
        # Keys and values before the dialogue in every layer (Li and Liang 2021, arXiv 2101.00190). PEFT gives them to
        # an encoder-decoder model's decoder alone, while the paper's encoder has some too.
        Method("prefix-tuning", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": VIRTUAL_TOKENS}, lr_multiplier=5),
        # Embeddings before the dialogue, at first those of random words (Lester et al. 2021, arXiv 2104.08691).
        Method("prompt-tuning", _PROMPT_TUNING, lr_multiplier=10),
        # The norms' weights (Zhao et al. 2023, arXiv 2312.11420). They start at 1, a hundred times the size of others.
        Method("layernorm-tuning", {"peft_type": "LN_TUNING", "target_modules": ("norm",)}, lr_multiplier=2),
        Method("last-2-blocks", last_blocks=2),
        Method("last-4-blocks", last_blocks=4),
        # QLoRA (Dettmers et al. 2023, arXiv 2305.14314): LoRA on all linear layers of a base in 4 or 8 bits.
        Method("qlora-nf4", lora(16, ALL_LINEAR), quantization="nf4"),
        Method("qlora-int8", lora(16, ALL_LINEAR), quantization="int8"),
        Method("zero-shot-nf4", is_trained=False, quantization="nf4"),
        Method("zero-shot-int8", is_trained=False, quantization="int8"),
        Method("zero-shot-int8-cpu", is_trained=False, quantization="int8-cpu"),
    )
}
