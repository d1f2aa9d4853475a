"""Settings given as text, `learning_rate=5e-4` or `lora-balanced.r=32`: which there are, and what each may be."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .errors import ConfigurationError

ATTENTION = ("query", "key", "value", "output")
ALL_LINEAR = (*ATTENTION, "mlp_in", "mlp_out")  # without the embeddings and the output layer
LORA_DEFAULTS = {"lora_dropout": 0.0, "use_dora": False, "use_rslora": False}  # PEFT's
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "none")  # what a training may report to
_YES_NO = {"true": True, "false": False}
# By kind and name: the type with the least and the largest value, or the words to choose from.
ALLOWED: dict[str, dict[str, tuple]] = {
    "training": {
        "learning_rate": (float, 1e-6, 1),
        "epochs": (float, 0.01, 1000),
        "batch_size": (int, 1, 4096),
        "warmup": (float, 0, 0.9),
        "schedule": ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"),
        "weight_decay": (float, 0, 1),
        "label_smoothing": (float, 0, 0.9),
        "max_grad_norm": (float, 0, 1000),
        "select_by": ("rouge1", "rouge2", "rougeL", "rougeLsum", "loss"),
        "patience": (int, 1, 1000),
        "averaged_epochs": (int, 0, 1000),
    },
    "generation": {
        "max_new_tokens": (int, 1, 1024),
        "num_beams": (int, 1, 32),
        "length_penalty": (float, -10, 10),
        "no_repeat_ngram_size": (int, 0, 100),
    },
    "adapter": {
        "r": (int, 1, 1024),
        "lora_alpha": (int, 1, 4096),
        "lora_dropout": (float, 0, 0.9),
        "use_dora": tuple(_YES_NO),
        "use_rslora": tuple(_YES_NO),
        "target_modules": ALL_LINEAR,
    },
}
_KINDS = {name: kind for kind, fields in ALLOWED.items() for name in fields}


class Setting(NamedTuple):
    """One setting: of one run, or of all that it can be of."""

    run: str  # empty: none was named
    kind: str  # a key of ALLOWED
    name: str
    value: object
    text: str  # name and value, the same for every way to write the value

    def applies_to(self, is_trained: bool, peft: Mapping[str, object]) -> bool:
        """Whether a run has such a setting: one that is trained or not, with this configuration of an adapter."""
        if self.kind == "adapter":
            return self.name in peft or (peft.get("peft_type") == "LORA" and self.name in LORA_DEFAULTS)
        return is_trained or self.kind == "generation"


def parse(settings: Sequence[str]) -> list[Setting]:
    """Settings from texts, those of no run first. Raises `ConfigurationError`, which says what is allowed."""
    parsed: dict[tuple[str, str], Setting] = {}
    for given in settings:
        place, _, text = given.partition("=")
        run, _, name = place.strip().rpartition(".")
        if name not in _KINDS:
            known = "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in ALLOWED.items())
            raise ConfigurationError(f"There is no setting {name!r} ({given}). There are, of {known}.")
        if (run, name) in parsed:
            raise ConfigurationError(f"The setting {place.strip()} is given twice.")
        value = _value(given, text.strip(), *ALLOWED[_KINDS[name]][name])
        shown = ",".join(value) if isinstance(value, tuple) else str(value).removesuffix(".0").lower()
        parsed[run, name] = Setting(run, _KINDS[name], name, value, f"{name}={shown}")
    return sorted(parsed.values(), key=lambda setting: (setting.run, setting.text))


def require_seed(seed: int) -> None:
    """Raise `ConfigurationError` for a seed that NumPy does not take."""
    if not 0 <= seed < 1 << 32:
        raise ConfigurationError(f"The seed is a whole number from 0 to {(1 << 32) - 1}, not {seed}.")


def _value(given: str, text: str, kind: type | str, *others: object) -> object:
    if isinstance(kind, str):
        words = (kind, *others)
        chosen = tuple(word.strip() for word in text.split(","))
        if set(chosen) <= set(words) and (len(chosen) == 1 or words == ALL_LINEAR):
            return chosen if words == ALL_LINEAR else _YES_NO.get(text, text)
        several = "one or several, with commas between, of" if words == ALL_LINEAR else "one of"
        raise ConfigurationError(f"{given}: allowed is {several} {', '.join(words)}.")
    low, high = others
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ConfigurationError(f"{given}: allowed is {what} from {low:g} to {high:g}.")
    return value
