"""What is studied: the named experiments (a model, data and settings); the methods are those of module `methods`.

Plain data, so that listing it imports nothing heavy. An entry states what differs from the defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .base_models import BASE_MODELS
from .methods import METHODS, Method
from .methods import STUDY_RUNS as STUDY_RUNS
from .prompts import BRIEF, PROMPT

PACKAGED_MODEL = "packaged/SmolLM2-135M-Instruct-Q4_1"
SAMPLE_DATA = "sample"


class ConfigurationError(ValueError):
    """A name or setting that the study does not know, or that cannot be used as given."""


@dataclass(frozen=True)
class Settings:
    """How one method is trained. A fair comparison gives each method a learning rate of its own.

    `batch_size` is the number of dialogues behind one step of the optimizer, however many of them the device holds at
    once. `patience` is the number of evaluations without improvement after which training stops. What is kept is the
    best checkpoint by `select_by`; or, with `averaged_epochs`, the mean of the weights at the ends of so many last
    epochs, and then validation summaries are scored at the end alone.
    """

    learning_rate: float
    epochs: float = 3
    batch_size: int = 32
    warmup: float = 0.1  # share of all steps
    schedule: str = "cosine"
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    select_by: str = "rouge2"  # or "loss": what picks the best checkpoint, on validation
    patience: int | None = None
    averaged_epochs: int = 0


@dataclass(frozen=True)
class Generation:
    """How summaries are written: greedy where `num_beams` is 1."""

    max_new_tokens: int = 80
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class Experiment:
    """A model, a data set, and the settings of each method on them.

    `model` is a Hub id, a folder, or the packaged model. `dataset` is a Hub id, a folder, or the packaged sample.
    `dialogues` limits a split to its first dialogues. `settings` is per method; `full` and `lora` serve the
    others, with a learning rate that is `Method.rate` times theirs.
    """

    name: str
    title: str
    model: str
    dataset: str
    settings: Mapping[str, Settings]
    dialogues: Mapping[str, int] = field(default_factory=dict)
    max_prompt_tokens: int = 1024
    generation: Generation = field(default_factory=Generation)
    prompt: str = PROMPT

    def settings_for(self, method: Method) -> Settings | None:
        """The settings that `method` is trained with; None for a method that does not train."""
        if not method.trains:
            return None
        if method.name in self.settings:
            return self.settings[method.name]
        general = self.settings["lora" if method.peft else "full"]
        return replace(general, learning_rate=general.learning_rate * method.rate)


DIALOGSUM = "knkarthick/dialogsum"

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="quickstart",
            title="the packaged SmolLM2-135M on 20 sample dialogues: minutes on a CPU, no network",
            model=PACKAGED_MODEL,
            dataset=SAMPLE_DATA,
            dialogues={"train": 20, "validation": 8, "test": 16},
            max_prompt_tokens=512,
            generation=Generation(max_new_tokens=50),  # the longest reference has 49
            # All of it in five minutes on 2 CPU cores: few dialogues, a step after each. Rates and batch were chosen
            # on validation and dialogues left out of training.
            settings={
                "full": Settings(1e-4, epochs=1, batch_size=1, select_by="loss"),
                "lora": Settings(1.5e-3, epochs=1, batch_size=1, select_by="loss"),
            },
        ),
        Experiment(
            name="smollm2-dialogsum",
            title="the packaged SmolLM2-135M on all of DialogSum: a GPU",
            model=PACKAGED_MODEL,
            dataset=DIALOGSUM,
            prompt=BRIEF,
            generation=Generation(num_beams=4, length_penalty=0.6),
            settings={  # chosen on validation: search.csv beside the records
                "full": Settings(1e-4, epochs=6, label_smoothing=0.1, averaged_epochs=5),
                "lora": Settings(2e-3, epochs=6, label_smoothing=0.1, averaged_epochs=5),
                "lora-efficient": Settings(2e-3, epochs=10, label_smoothing=0.1, averaged_epochs=5),
                "lora-all-linear": Settings(1e-3, epochs=6, label_smoothing=0.1, averaged_epochs=5),
            },
        ),
        Experiment(
            name="flan-t5-base-dialogsum",
            title="FLAN-T5-base on all of DialogSum, the study as first conceived: a GPU and the Hub",
            model="google/flan-t5-base",
            dataset=DIALOGSUM,
            max_prompt_tokens=512,
            settings={"full": Settings(2e-4), "lora": Settings(1e-3)},
        ),
    )
}


def _lookup(kind: str, name: str, table: Mapping[str, object]) -> object:
    if name not in table:
        raise ConfigurationError(f"There is no {kind} {name!r}. There are: {', '.join(table)}.")
    return table[name]


def method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigurationError: there is none; the message lists those there are.
    """
    return _lookup("run", name, METHODS)


def _last_part(source: str) -> str:
    """What a folder or a Hub id is called, for the name of an experiment."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else folder.name


def experiment(
    name: str, *, model: str | None = None, dataset: str | None = None, limit: int | None = None
) -> Experiment:
    """The experiment of that name, or one derived from it, with a name of its own so that it overwrites nothing.

    Args:
        name: One of `EXPERIMENTS`.
        model: Another model: a name in `BASE_MODELS`, a Hub id or a folder. Prompts are no longer than it takes.
        dataset: Another data source: a Hub id or a folder.
        limit: Only the first dialogues of each split.

    Raises:
        ConfigurationError: There is no such experiment, or the limit is not positive.
    """
    found = _lookup("experiment", name, EXPERIMENTS)
    if model:
        name = _last_part(model)
        found = replace(found, name=f"{found.name}-{name}", model=str(model))
        if name in BASE_MODELS:
            known = BASE_MODELS[name]
            source = known.source if model == name and not Path(model).is_dir() else str(model)
            longest = min(found.max_prompt_tokens, known.max_prompt_tokens)
            found = replace(found, model=source, max_prompt_tokens=longest)
    if dataset:
        found = replace(found, name=f"{found.name}-{_last_part(dataset)}", dataset=str(dataset), dialogues={})
    if limit is not None:
        if limit < 1:
            raise ConfigurationError(f"The limit is a number of dialogues, 1 or more, not {limit}.")
        kept = {split: min(limit, found.dialogues.get(split, limit)) for split in ("train", "validation", "test")}
        found = replace(found, name=f"{found.name}-limit{limit}", dialogues=kept)
    return found
