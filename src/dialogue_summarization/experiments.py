"""What is studied: experiments (a model, a data set, settings) and methods (how a model is fine-tuned).

Plain data, so that listing it imports nothing heavy. An entry states only what differs from the defaults.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import digests
from .errors import ConfigurationError
from .prompts import BRIEF, PROMPT
from .settings import ALL_LINEAR, ATTENTION, LORA_DEFAULTS, Setting, parse

PACKAGED_MODEL = "packaged/SmolLM2-135M-Instruct-Q4_1"
SAMPLE_DATA = "sample"
DIALOGSUM = "knkarthick/dialogsum"
VIRTUAL_TOKENS = 20  # that prompt and prefix tuning put before a dialogue


@dataclass(frozen=True)
class Settings:
    """How a method is trained; each method has a learning rate of its own.

    The best checkpoint on validation by `select_by` ("rouge2" or "loss") is kept, or with `averaged_epochs` the mean of
    the weights at the ends of that many last epochs.
    """

    learning_rate: float
    epochs: float = 3
    batch_size: int = 32  # dialogues per optimizer step (the effective batch)
    warmup: float = 0.1  # fraction of all steps
    schedule: str = "cosine"
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    select_by: str = "rouge2"
    patience: int | None = None  # evaluations without improvement after which training stops
    averaged_epochs: int = 0

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience >= self.epochs:
            raise ConfigurationError(f"patience={self.patience} stops nothing in {self.epochs:g} epochs: take less.")


@dataclass(frozen=True)
class Generation:
    """How summaries are generated: greedily where `num_beams` is 1."""

    max_new_tokens: int = 80
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class Method:
    """How a model is fine-tuned, if it is."""

    name: str
    # Arguments of a PEFT configuration, target modules by the names in `models.TARGET_MODULES`; None: every weight.
    peft: Mapping[str, object] | None = None
    is_trained: bool = True
    lr_multiplier: float = 1.0  # of the experiment's rate for `full` or `lora`, where it has none for this method
    loraplus_ratio: float | None = None  # LoRA+: the learning rate of B over that of A
    last_blocks: int | None = None  # trains only that many last layers
    quantization: str | None = None  # how the base model's weights are stored

    @property
    def options(self) -> dict[str, object]:
        """What changes the result besides PEFT's configuration and the settings, for the record."""
        names = ("loraplus_ratio", "last_blocks", "quantization")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def lora(rank: int, targets: tuple[str, ...], **changes: object) -> dict[str, object]:
    """LoRA (Hu et al. 2021, arXiv 2106.09685) with alpha = 2 x rank, as in the starting study's presets."""
    return {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets} | changes


METHODS: dict[str, Method] = {
    "zero-shot": Method("zero-shot", is_trained=False),
    "full": Method("full"),
    "lora-efficient": Method("lora-efficient", lora(8, ("query", "value"))),
    "lora-balanced": Method("lora-balanced", lora(16, ATTENTION)),
    "lora-high-performance": Method("lora-high-performance", lora(32, ATTENTION)),
    "lora-all-linear": Method("lora-all-linear", lora(16, ALL_LINEAR)),
}
STUDY_RUNS = ("zero-shot", "full", "lora-efficient", "lora-balanced", "lora-high-performance")


@dataclass(frozen=True)
class Experiment:
    """A model, a data set, and the settings of each method on them."""

    name: str
    title: str
    model: str  # a Hub id, a folder, or PACKAGED_MODEL
    dataset: str  # a Hub id, a folder, or SAMPLE_DATA
    settings: Mapping[str, Settings]  # per method; `full` and `lora` serve the methods that have none of their own
    runs: tuple[str, ...] = STUDY_RUNS  # which methods are run, unless others are asked for
    dialogues: Mapping[str, int] = field(default_factory=dict)  # per split: only its first ones
    max_prompt_tokens: int = 1024
    generation: Generation = field(default_factory=Generation)
    prompt: str = PROMPT
    decoding: Mapping[str, Generation] = field(default_factory=dict)  # per method, in place of `generation`
    adapters: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # per method, in place of its `peft`
    changes: tuple[str, ...] = ()  # the settings by which it differs from the named experiment, as `parse` takes them

    def settings_for(self, method: Method) -> Settings | None:
        """The settings that `method` is trained with; None for a method that is not trained."""
        if not method.is_trained:
            return None
        if method.name in self.settings:
            return self.settings[method.name]
        general = self.settings["lora" if method.peft else "full"]
        return replace(general, learning_rate=general.learning_rate * method.lr_multiplier)

    def generation_for(self, method: Method) -> Generation:
        """How summaries of a run with `method` are generated."""
        return self.decoding.get(method.name, self.generation)

    def adapted(self, method: Method) -> Method:
        """The method with the adapter that it has in this experiment."""
        return replace(method, peft=self.adapters.get(method.name, method.peft))


_QUICKSTART = Experiment(
    name="quickstart",
    title="the packaged SmolLM2-135M on 128 sample dialogues: minutes on a CPU, no network",
    model=PACKAGED_MODEL,
    dataset=SAMPLE_DATA,
    runs=("zero-shot", "full", "lora-balanced"),
    max_prompt_tokens=512,
    prompt=BRIEF,
    # Chosen on validation: outputs/benchmarks/sample-dialogues-search.jsonl.
    generation=Generation(max_new_tokens=50),
    decoding={"zero-shot": Generation(max_new_tokens=50, num_beams=4, no_repeat_ngram_size=3)},
    settings={
        "full": Settings(1e-4, epochs=1, batch_size=4, select_by="loss"),
        "lora": Settings(2e-3, epochs=1, batch_size=2, select_by="loss"),
    },
)
_STUDY = Settings(2e-3, epochs=6, label_smoothing=0.1, averaged_epochs=5)
_SMOLLM2 = Experiment(
    name="smollm2-dialogsum",
    title="the packaged SmolLM2-135M on all of DialogSum: a GPU",
    model=PACKAGED_MODEL,
    dataset=DIALOGSUM,
    prompt=BRIEF,
    generation=Generation(num_beams=4, length_penalty=0.6),  # chosen on validation: search.csv beside the records
    decoding={"zero-shot": Generation(max_new_tokens=50, num_beams=4)},
    settings={
        "full": replace(_STUDY, learning_rate=1e-4),
        "lora": _STUDY,
        "lora-efficient": replace(_STUDY, epochs=10),
        "lora-all-linear": replace(_STUDY, learning_rate=1e-3),
    },
)
_FLAN_T5 = Experiment(
    name="flan-t5-base-dialogsum",
    title="FLAN-T5-base on all of DialogSum, the study as first conceived: a GPU and the Hub",
    model="google/flan-t5-base",
    dataset=DIALOGSUM,
    max_prompt_tokens=512,
    settings={"full": Settings(2e-4), "lora": Settings(1e-3)},
)
EXPERIMENTS = {experiment.name: experiment for experiment in (_QUICKSTART, _SMOLLM2, _FLAN_T5)}


def method(name: str) -> Method:
    """The method of that name, of `METHODS` or the subpackage `methods`. Raises `ConfigurationError`."""
    if name in METHODS:
        return METHODS[name]
    from .methods.table import FURTHER_METHODS

    return _lookup("run", name, METHODS | FURTHER_METHODS)


def methods(names: str) -> list[Method]:
    """The methods of names with commas between them, at least one. Raises `ConfigurationError`."""
    wanted = dict.fromkeys(filter(None, map(str.strip, names.split(","))))
    return [method(name) for name in wanted or [""]]


def experiment(
    name: str,
    *,
    model: str | None = None,
    dataset: str | None = None,
    limit: int | None = None,
    settings: Sequence[str] = (),
    runs: Sequence[str] | None = None,
) -> Experiment:
    """The experiment of that name, or one derived from it, whose name says so: it overwrites nothing.

    `model` and `dataset` are a Hub id or a folder, of which the name has six digits of its content; `limit` takes only
    the first dialogues of each split. `settings` are texts such as `lora-balanced.r=32`; one that names no run belongs
    to the one of `runs` (default: the experiment's own) that it can belong to. Raises `ConfigurationError` where a
    name, the limit or a setting cannot be used.
    """
    derived = _lookup("experiment", name, EXPERIMENTS)
    if model:
        derived = replace(derived, name=f"{derived.name}-{digests.label(model)}", model=str(model))
    if dataset:
        derived = replace(derived, name=f"{derived.name}-{digests.label(dataset)}", dataset=str(dataset), dialogues={})
    if limit is not None:
        if limit < 1:
            raise ConfigurationError(f"The limit is a number of dialogues, 1 or more, not {limit}.")
        sizes = {split: min(limit, derived.dialogues.get(split, limit)) for split in ("train", "validation", "test")}
        derived = replace(derived, name=f"{derived.name}-limit{limit}", dialogues=sizes)
    for setting in parse(settings):
        derived = _changed(derived, setting, runs or derived.runs)
    full_name = "-".join((derived.name, *derived.changes))
    if len(full_name) > 120:  # a folder has this name
        full_name = f"{full_name[:110]}-{hashlib.sha256(full_name.encode()).hexdigest()[:8]}"
    return replace(derived, name=full_name)


def _changed(derived: Experiment, setting: Setting, runs: Sequence[str]) -> Experiment:
    """The experiment with a setting; as it is where that is its value already."""
    change, text = {setting.name: setting.value}, setting.text
    if setting.kind == "generation" and not setting.run:  # of all runs
        decoding = {run: replace(own, **change) for run, own in derived.decoding.items()}
        after = replace(derived, generation=replace(derived.generation, **change), decoding=decoding)
        return derived if after == derived else replace(after, changes=(*derived.changes, text))
    several = [derived.adapted(method(name)) for name in ([setting.run] if setting.run else runs)]
    takers = [one for one in several if setting.applies_to(one.is_trained, one.peft or {})]
    if len(takers) != 1:
        asked = f"{setting.run} has none" if setting.run else f"{len(takers)} of {', '.join(runs)} have it"
        advice = f": name one, as {takers[0].name}.{text}" if takers else ""
        raise ConfigurationError(f"{text} is a setting of one run's {setting.kind}, and {asked}{advice}.")
    part, own = {
        "training": ("settings", derived.settings_for(takers[0])),
        "generation": ("decoding", derived.generation_for(takers[0])),
        "adapter": ("adapters", takers[0].peft),
    }[setting.kind]
    before = own if isinstance(own, dict) else vars(own)
    if before.get(setting.name, LORA_DEFAULTS.get(setting.name)) == setting.value:
        return derived
    changed = {part: {**getattr(derived, part), takers[0].name: type(own)(**(before | change))}}
    return replace(derived, **changed, changes=(*derived.changes, f"{takers[0].name}.{text}"))


def _lookup(kind: str, name: str, table: Mapping[str, object]) -> object:
    if name not in table:
        raise ConfigurationError(f"There is no {kind} {name!r}. There are: {', '.join(table)}.")
    return table[name]
