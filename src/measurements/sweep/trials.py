"""Which trials a sweep trains: search spaces, each the answer to a question."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dialogue_summarization.errors import ConfigurationError
from dialogue_summarization.experiments import ALL_LINEAR, ATTENTION, Experiment, Method, method

from . import records

QUARTER, EIGHTH = 0.25, 0.125  # of the training dialogues
RANKS = (1, 4, 16, 64, 128)
TARGET_MODULES = {
    "query and value": ("query", "value"),
    "attention": ATTENTION,
    "MLP": ("mlp_in", "mlp_out"),
    "all linear": ALL_LINEAR,
}
# That LoRA's best learning rate hardly depends on the rank is claimed for a fixed alpha (Schulman et al. 2025, "LoRA
# Without Regret": 32), so that the product of A and B, scaled by alpha / r, begins to move alike at every rank. At rank
# 16 that is the presets' scale of 2. Two ranks are tried with the presets' alpha = 2 r too.
ALPHA = 32
GRID_RATES = (5e-4, 2e-3, 8e-3)
ATTENTION_RATES = (*GRID_RATES, 3.2e-2)  # without the MLP the highest of three was the best
GRID_FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
GRID_EPOCHS = 2
# With alpha = 2 r the scale is 2 at both ranks, and the best rates lie far apart.
DOUBLED_ALPHA_RATES = {1: (*GRID_RATES, 3.2e-2), 128: (1.25e-4, *GRID_RATES)}
# Rank 33 of attention's matrices has as many parameters as rank 20 of the MLP's: 3,801,600 of SmolLM2-135M.
EQUAL_SIZES = (("attention", 33, (2e-3, 4e-3, 8e-3, 1.6e-2)), ("MLP", 20, (1e-3, 2e-3, 4e-3, 8e-3)))
RSLORA_RATES = (1.25e-4, 5e-4, 2e-3)  # its scale is eight times as high as plain LoRA's of rank 64
BATCH_SIZES = (8, 128)  # 32 is the grid's
TRAIN_FRACTIONS = (0.01, 0.02, 0.1, 0.25, 1.0)
EPOCHS, MIN_STEPS = 3, 100
MORE_SEEDS = (1, 2)
# The last weights count: nothing is averaged, no checkpoint is chosen.
SETTINGS = {"label_smoothing": 0.1, "averaged_epochs": 0, "select_by": "loss"}

VARIANTS = ("dora", "rslora", "pissa", "lora-plus")  # LoRA with one thing changed, on the same layers
REPEATED = ("full", "lora-balanced", "lora-all-linear", *VARIANTS)  # what the claims rest on
OTHERS = ("vera", "lokr", "oft", "ia3", "layernorm-tuning", "last-2-blocks", "last-4-blocks")
PLAIN_ONLY = ("prompt-tuning", "prefix-tuning", "qlora-nf4", "qlora-int8")  # slow: their steps are not compiled
COMPARED = (*REPEATED, *OTHERS, *PLAIN_ONLY)


@dataclass(frozen=True)
class Trial:
    """One training: a method at a learning rate, on a fraction of the training dialogues."""

    method: Method
    learning_rate: float
    epochs: float
    train_fraction: float
    seed: int = 0
    batch_size: int | None = None  # None: the experiment's

    def experiment(self, base: Experiment) -> Experiment:
        """The base experiment with this trial's settings."""
        own = base.settings_for(self.method)
        changes = {"learning_rate": self.learning_rate, "epochs": self.epochs} | SETTINGS
        changes["batch_size"] = self.batch_size or own.batch_size
        return replace(base, settings={self.method.name: replace(own, **changes)})

    @property
    def lora_columns(self) -> dict[str, object]:
        """Rank, alpha and the targets' name of LoRA and its variants; nothing of other methods."""
        peft = self.method.peft or {}
        if peft.get("peft_type") != "LORA":
            return {}
        names = {modules: name for name, modules in TARGET_MODULES.items()}
        return {"rank": peft["r"], "alpha": peft["lora_alpha"], "targets": names[tuple(peft["target_modules"])]}


@dataclass(frozen=True)
class SearchSpace:
    """The trials of one file.

    Where it is `tested`, the best on validation of a method's trials on the same dialogues with the same seed generates
    summaries of the test split, once.
    """

    name: str
    trials: Sequence[Trial]
    tested: bool


def search_space(name: str, experiment: Experiment, train_dialogues: int, outputs: Path) -> SearchSpace:
    """The trials of that name, of an experiment with so many training dialogues.

    Raises:
        ConfigurationError: There is no such search space, or what it repeats is not made.
        RecordError: What it repeats is damaged.
    """
    if name not in SPACES:
        raise ConfigurationError(f"There is no search space {name!r}. There are: {', '.join(SPACES)}.")
    is_tested = not name.startswith(("grid", "claims"))
    return SearchSpace(name, SPACES[name](experiment, train_dialogues, outputs), is_tested)


def methods(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Every method at a third, one and three times its learning rate in the experiment."""
    tried = [(method(name), experiment.settings_for(method(name)).learning_rate) for name in COMPARED]
    return [Trial(one, rate * factor, EPOCHS, QUARTER) for one, rate in tried for factor in (1 / 3, 1, 3)]


def methods_repeats(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Two more seeds of `REPEATED`, at their best rates."""
    best = {name: _best_rate(outputs / "methods.csv", name, records.score) for name in REPEATED}
    return [Trial(method(name), rate, EPOCHS, QUARTER, seed) for name, rate in best.items() for seed in MORE_SEEDS]


def grid(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Rank x target modules x learning rate of LoRA, and full fine-tuning's learning rates."""
    adapters = [grid_lora(rank, targets) for targets in reversed(TARGET_MODULES) for rank in RANKS]
    trials = _grid_trials(method("full"), GRID_FULL_RATES)
    for adapter in adapters:
        has_mlp = "mlp_in" in adapter.peft["target_modules"]
        trials += _grid_trials(adapter, GRID_RATES if has_mlp else ATTENTION_RATES)
    for rank, rates in DOUBLED_ALPHA_RATES.items():
        trials += _grid_trials(grid_lora(rank, "all linear", 2 * rank), rates)
    return trials


def grid_repeats(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Two more seeds of what the claims rest on.

    Of the learning rates: full's best with its neighbours, or the three at an end where it lies there, and all rates of
    three ranks. Of the target modules: attention and MLP at their best rates, attention with more parameters than the
    MLP too.
    """

    def best(name: str) -> float:
        return _best_rate(outputs / "grid.csv", name, _loss)

    start = min(max(GRID_FULL_RATES.index(best("full")) - 1, 0), len(GRID_FULL_RATES) - 3)
    chosen = [(method("full"), GRID_FULL_RATES[start : start + 3])]
    chosen += [(grid_lora(rank, "all linear"), GRID_RATES) for rank in (1, 16, 128)]
    for adapter in (grid_lora(16, "attention"), grid_lora(64, "attention"), grid_lora(16, "MLP")):
        chosen.append((adapter, [best(adapter.name)]))
    return [trial for adapter, rates in chosen for seed in MORE_SEEDS for trial in _grid_trials(adapter, rates, seed)]


def claims(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Layers at equally many parameters, rsLoRA at a high rank, and LoRA beside full with other batches."""
    trials = [one for targets, rank, rates in EQUAL_SIZES for one in _grid_trials(grid_lora(rank, targets), rates)]
    rslora = grid_lora(64, "all linear")
    rslora = replace(rslora, name=f"{rslora.name}-rslora", peft={**rslora.peft, "use_rslora": True})
    trials += _grid_trials(rslora, RSLORA_RATES)
    for size in BATCH_SIZES:
        for one, rates in ((method("full"), GRID_FULL_RATES[:4]), (grid_lora(16, "all linear"), GRID_RATES)):
            several = _grid_trials(replace(one, name=f"{one.name}-batch-{size}"), rates)
            trials += [replace(trial, batch_size=size) for trial in several]
    return trials


def claims_repeats(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Two more seeds of `claims` at their best rates by loss, and of plain LoRA beside rsLoRA."""
    plain = _grid_trials(grid_lora(64, "all linear"), GRID_RATES)
    tried = [("claims", trial) for trial in claims(experiment, train_dialogues, outputs)]
    tried += [("grid", trial) for trial in plain]
    best = {trial.method.name: _best_rate(outputs / f"{file}.csv", trial.method.name, _loss) for file, trial in tried}
    chosen = [trial for _, trial in tried if trial.learning_rate == best[trial.method.name]]
    return [replace(trial, seed=seed) for trial in chosen for seed in MORE_SEEDS]


def data(experiment: Experiment, train_dialogues: int, outputs: Path) -> list[Trial]:
    """Full and balanced LoRA on fractions of the data: 3 epochs and 100 steps at least; two seeds, but of all of it."""
    trials = []
    for name in ("full", "lora-balanced"):
        settings = experiment.settings_for(method(name))
        for fraction in TRAIN_FRACTIONS:
            steps_per_epoch = max(1, math.ceil(round(fraction * train_dialogues) / settings.batch_size))
            epochs = max(EPOCHS, math.ceil(MIN_STEPS / steps_per_epoch))
            seeds = (0, 1) if fraction < 1 else (0,)
            trials += [Trial(method(name), settings.learning_rate, epochs, fraction, seed) for seed in seeds]
    return trials


REPEATS = {"methods-repeats": methods_repeats, "grid-repeats": grid_repeats, "claims-repeats": claims_repeats}
# In the order in which they are made.
SPACES = {"methods": methods, "grid": grid, "claims": claims, "data": data} | REPEATS


def grid_lora(rank: int, targets: str, alpha: int = ALPHA) -> Method:
    """A method of the grid."""
    name = f"lora-r{rank}-{targets.lower().replace(' ', '-')}" + ("" if alpha == ALPHA else f"-alpha-{alpha}")
    modules = TARGET_MODULES[targets]
    return Method(name, {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": modules})


def _grid_trials(method: Method, rates: Sequence[float], seed: int = 0) -> list[Trial]:
    return [Trial(method, rate, GRID_EPOCHS, EIGHTH, seed) for rate in rates]


def _loss(table: pd.DataFrame) -> pd.Series:  # it says more than ROUGE where differences are small
    return -table["eval_loss"]


def _best_rate(path: Path, name: str, score: Callable[[pd.DataFrame], pd.Series]) -> float:
    table = records.read(path)
    table = table[(table["method"] == name) & (table["diverged"] == 0)]
    if table.empty:
        raise ConfigurationError(f"{path} holds no trial of {name}: make the search space {path.stem} first.")
    return float(table.loc[score(table).idxmax(), "learning_rate"])
