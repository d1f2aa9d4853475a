"""How a model can be tuned: the named methods. An entry states what differs from the defaults.

Plain data, so that listing it imports nothing heavy. Bottleneck adapters (Houlsby et al. 2019) are not among them: the
library that keeps them, `adapters` 1.3, asks for transformers below 4.58, and PEFT has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

VIRTUAL_TOKENS = 20  # that prompt and prefix tuning put before a dialogue


@dataclass(frozen=True)
class Method:
    """How a model is tuned.

    `peft` holds the arguments of a PEFT configuration as `peft.get_peft_config` takes them (plain data, since importing
    peft takes seconds), with target modules under generic names that `architectures.TARGETS` maps to each architecture.
    `None` trains every weight, or none where `trains` is false.

    `rate` is the learning rate as a multiple of the experiment's for `full` or `lora`, where that names none for this
    method: a starting point, to be chosen on validation as every other.

    `loraplus_ratio` is how many times faster LoRA's B learns than A. `last_blocks` trains that many blocks at the
    output's end instead of the whole model. `quantization` is how the base model's weights are held, as the module
    of that name has it.
    """

    name: str
    peft: Mapping[str, object] | None = None
    trains: bool = True
    rate: float = 1.0
    loraplus_ratio: float | None = None
    last_blocks: int | None = None
    quantization: str | None = None

    @property
    def options(self) -> dict[str, object]:
        """What changes the result beside PEFT's configuration and the settings, for the record."""
        every = {name: getattr(self, name) for name in ("loraplus_ratio", "last_blocks", "quantization")}
        return {name: value for name, value in every.items() if value is not None}


ATTENTION = ("query", "key", "value", "output")
ALL_LINEAR = (*ATTENTION, "mlp_in", "mlp_out")  # but the embeddings and the output layer


def _lora(rank: int, targets: tuple[str, ...], **changes: object) -> dict[str, object]:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) with alpha = 2 x rank, as in the starting study's presets."""
    return {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets} | changes


# Learning rates: PEFT's own comparison of methods (github.com/huggingface/peft, method_comparison/MetaMathQA) has 1e-4
# for LoRA, 1e-3 for prompt and prefix tuning and 5e-3 for IA3. Our LoRA learns at 1e-3 to 4e-3: the multiples are
# smaller here.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("zero-shot", trains=False),
        Method("full"),
        Method("lora-efficient", _lora(8, ("query", "value"))),
        Method("lora-balanced", _lora(16, ATTENTION)),
        Method("lora-high-performance", _lora(32, ATTENTION)),
        Method("lora-all-linear", _lora(16, ALL_LINEAR)),
        # Below: variants of lora-balanced, each with one thing changed.
        Method("dora", _lora(16, ATTENTION, use_dora=True)),  # Liu et al. 2024, arXiv 2402.09353
        # Scaled by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732), which differs from LoRA's alpha / r where
        # the rank is high: 16 / sqrt(64) = 2, the presets' scale, so that their learning rate serves.
        Method("rslora", _lora(64, ATTENTION, use_rslora=True, lora_alpha=16)),
        # Starts from the largest singular vectors of the weights (Meng et al. 2024, arXiv 2404.02948), with alpha = r.
        # B starts at the weights' size and not at 0, so that a step moves the product further. The full decomposition,
        # since the fast one draws numbers at random: loading an adapter again must subtract the same matrix.
        Method("pissa", _lora(16, ATTENTION, init_lora_weights="pissa", lora_alpha=16), rate=0.25),
        # Hayou et al. 2024, arXiv 2402.12354: ratio 16. PEFT advises half of a usual rate for A; ours is high.
        Method("lora-plus", _lora(16, ATTENTION), rate=0.25, loraplus_ratio=16.0),
        # Fixed random matrices and a trained scale for each row (Kopiczko et al. 2023, arXiv 2310.11454); the paper
        # trains at about ten times LoRA's rate. The matrices are saved too: a seed does not bring them back everywhere.
        Method("vera", {"peft_type": "VERA", "r": 256, "target_modules": ("query", "value")}, rate=10),
        # Kronecker products (Yeh et al. 2023, arXiv 2309.14859), and rotations of the inputs (Qiu et al. 2023,
        # arXiv 2306.07280; Liu et al. 2023, arXiv 2311.06243).
        Method("lokr", {"peft_type": "LOKR", "r": 16, "alpha": 16, "target_modules": ATTENTION}),
        Method("oft", {"peft_type": "OFT", "r": 0, "oft_block_size": 16, "target_modules": ATTENTION}),
        # A factor for each key, value and hidden unit (Liu et al. 2022, arXiv 2205.05638: rate 3e-3).
        Method("ia3", {"peft_type": "IA3", "target_modules": ("key", "value", "mlp_out"),
                       "feedforward_modules": ("mlp_out",)}, rate=5),
        # Keys and values before the dialogue in every layer (Li and Liang 2021, arXiv 2101.00190); PEFT gives them to
        # an encoder-decoder model's decoder alone, while the paper's encoder has some too.
        Method("prefix-tuning", {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": VIRTUAL_TOKENS}, rate=5),
        # Embeddings before the dialogue, at first those of words drawn at random (Lester et al. 2021, arXiv 2104.08691:
        # rate 0.3 with Adafactor).
        Method("prompt-tuning", {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": VIRTUAL_TOKENS,
                                 "prompt_tuning_init": "SAMPLE_VOCAB"}, rate=10),
        # The norms' weights (Zhao et al. 2023, arXiv 2312.11420). They start at 1, a hundred times the size of others.
        Method("layernorm-tuning", {"peft_type": "LN_TUNING", "target_modules": ("norm",)}, rate=2),
        Method("last-2-blocks", last_blocks=2),
        Method("last-4-blocks", last_blocks=4),
        # QLoRA (Dettmers et al. 2023, arXiv 2305.14314): LoRA on all linear layers of a base in 4 or 8 bits.
        Method("qlora-nf4", _lora(16, ALL_LINEAR), quantization="nf4"),
        Method("qlora-int8", _lora(16, ALL_LINEAR), quantization="int8"),
        Method("zero-shot-nf4", trains=False, quantization="nf4"),
        Method("zero-shot-int8", trains=False, quantization="int8"),
        Method("zero-shot-int8-cpu", trains=False, quantization="int8-cpu"),
    )
}  # fmt: skip
UNTRAINED = tuple(name for name, method in METHODS.items() if not method.trains)  # they differ in the base alone
STUDY_RUNS = ("zero-shot", "full", "lora-efficient", "lora-balanced", "lora-high-performance")
