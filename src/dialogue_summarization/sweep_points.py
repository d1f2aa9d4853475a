"""Which points a sweep trains: groups of them, each an answer to a question."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from . import sweep_records
from .experiments import ConfigurationError, Experiment, Method, method
from .methods import ALL_LINEAR, ATTENTION

QUARTER, EIGHTH = 0.25, 0.125
RANKS = (1, 4, 16, 64, 128)
TARGETS = {
    "query and value": ("query", "value"),
    "attention": ATTENTION,
    "MLP": ("mlp_in", "mlp_out"),
    "all linear": ALL_LINEAR,
}
# The literature's claim that LoRA's best rate hardly depends on the rank is of a fixed alpha (Schulman et al. 2025,
# "LoRA Without Regret": 32), so that the product of A and B, scaled by alpha / r, begins to move alike at every rank.
# At rank 16 that is the presets' scale of 2. Two ranks are tried with the presets' alpha = 2 r too.
ALPHA = 32
DOUBLED = (1, 128)
GRID_RATES = (5e-4, 2e-3, 8e-3)
ATTENTION_RATES = (*GRID_RATES, 3.2e-2)  # without the MLP the highest of three was the best
GRID_FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
GRID_EPOCHS = 2
SHARES = (0.01, 0.02, 0.1, 0.25, 1.0)
EPOCHS, LEAST_STEPS = 3, 100
MORE_SEEDS = (1, 2)

VARIANTS = ("dora", "rslora", "pissa", "lora-plus")  # LoRA with one thing changed, on the same layers
REPEATED = ("full", "lora-balanced", "lora-all-linear", *VARIANTS)  # what the claims rest on
# The slow ones last: their steps are not compiled.
COMPARED = (
    *REPEATED, "vera", "lokr", "oft", "ia3", "layernorm-tuning", "last-2-blocks", "last-4-blocks", "prompt-tuning",
    "prefix-tuning", "qlora-nf4", "qlora-int8",
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One training: a method at a learning rate, on a share of the training dialogues."""

    method: Method
    learning_rate: float
    epochs: float
    share: float
    seed: int = 0

    def experiment(self, base: Experiment) -> Experiment:
        """The base experiment with this point's settings: the last weights count, nothing is averaged."""
        settings = replace(
            base.settings_for(self.method), learning_rate=self.learning_rate, epochs=self.epochs, label_smoothing=0.1,
            averaged_epochs=0, select_by="loss", patience=None,
        )  # fmt: skip
        return replace(base, settings={self.method.name: settings})

    @property
    def lora(self) -> dict[str, object]:
        """Rank, alpha and the targets' name of LoRA and its variants; nothing of other methods."""
        peft = self.method.peft or {}
        if peft.get("peft_type") != "LORA":
            return {}
        names = {modules: name for name, modules in TARGETS.items()}
        return {"rank": peft["r"], "alpha": peft["lora_alpha"], "targets": names[tuple(peft["target_modules"])]}


@dataclass(frozen=True)
class Group:
    """Points of one file.

    Where it is `tested`, of a method's points on the same dialogues with the same seed the best on validation
    summarizes the test split, once.
    """

    name: str
    points: tuple[Point, ...]
    tested: bool


def lora(rank: int, targets: str, alpha: int = ALPHA) -> Method:
    """A method of the grid."""
    scaled = "" if alpha == ALPHA else f"-alpha-{alpha}"
    name = f"lora-r{rank}-{targets.lower().replace(' ', '-')}{scaled}"
    return Method(name, {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": TARGETS[targets]})


def methods(experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """Every method at a third, one and three times its learning rate in the experiment."""
    rates = {name: _rate(experiment, method(name)) for name in COMPARED}
    points = [Point(method(name), rate * factor, EPOCHS, QUARTER) for name, rate in rates.items()
              for factor in (1 / 3, 1, 3)]  # fmt: skip
    return Group("methods", tuple(points), tested=True)


def methods_repeats(experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """Two more seeds of `REPEATED`, at their best rates."""
    table = _made(outputs, "methods")
    best = table.loc[sweep_records.score(table).groupby(table["method"]).idxmax()]
    rates = best.set_index("method")["learning_rate"]
    if missing := [name for name in REPEATED if name not in rates]:
        raise ConfigurationError(f"methods.csv holds no point of {missing[0]}: make the group methods first.")
    return Group("methods-repeats", tuple(
        Point(method(name), float(rates[name]), EPOCHS, QUARTER, seed) for name in REPEATED for seed in MORE_SEEDS
    ), tested=True)  # fmt: skip


def grid(experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """Rank x targets x learning rate of LoRA, and full fine-tuning's learning rates."""
    adapters = [lora(rank, targets) for targets in reversed(TARGETS) for rank in RANKS]
    adapters += [lora(rank, "all linear", 2 * rank) for rank in DOUBLED]
    points = _grid_points(method("full"), GRID_FULL_RATES)
    for one in adapters:
        has_mlp = "mlp_in" in one.peft["target_modules"]
        points += _grid_points(one, GRID_RATES if has_mlp else ATTENTION_RATES)
    return Group("grid", tuple(points), tested=False)


def grid_repeats(experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """Two more seeds of what the claims rest on.

    Of the learning rates: full's best with its neighbours, all rates of three ranks. Of the targets: attention and MLP
    at their best rates, attention with more weights than the MLP too.
    """
    table = _made(outputs, "grid")
    chosen = []
    around = _around(_best_rate(table, "full"), GRID_FULL_RATES)
    for seed in MORE_SEEDS:
        chosen += _grid_points(method("full"), around, seed)
    for rank in (1, 16, 128):
        for seed in MORE_SEEDS:
            chosen += _grid_points(lora(rank, "all linear"), GRID_RATES, seed)
    for one in (lora(16, "attention"), lora(64, "attention"), lora(16, "MLP")):
        for seed in MORE_SEEDS:
            chosen += _grid_points(one, [_best_rate(table, one.name)], seed)
    return Group("grid-repeats", tuple(chosen), tested=False)


def data(experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """Full and balanced LoRA on shares of the data: 3 epochs, and 100 steps at least; two seeds, but of all of it."""
    points = []
    for name in ("full", "lora-balanced"):
        rate = _rate(experiment, method(name))
        for share in SHARES:
            steps = math.ceil(round(share * pairs) / experiment.settings_for(method(name)).batch_size)
            epochs = max(EPOCHS, math.ceil(LEAST_STEPS / max(steps, 1)))
            seeds = (0, 1) if share < 1 else (0,)
            points += [Point(method(name), rate, epochs, share, seed) for seed in seeds]
    return Group("data", tuple(points), tested=True)


GROUPS: dict[str, Callable[[Experiment, int, Path], Group]] = {
    "methods": methods,
    "grid": grid,
    "data": data,
    "methods-repeats": methods_repeats,
    "grid-repeats": grid_repeats,
}


def group(name: str, experiment: Experiment, pairs: int, outputs: Path) -> Group:
    """The points of that name, of an experiment with so many training dialogues; repeats need others' records.

    Raises:
        ConfigurationError: There is no such group, or what it repeats is not made.
        RecordError: What it repeats is damaged.
    """
    if name not in GROUPS:
        raise ConfigurationError(f"There is no group {name!r} of points. There are: {', '.join(GROUPS)}.")
    return GROUPS[name](experiment, pairs, outputs)


def shared(points: Sequence[Point], number: int, count: int) -> list[Point]:
    """The points of every `count`-th method, from the `number`-th on, counted from 1."""
    names = list(dict.fromkeys(point.method.name for point in points))[number - 1 :: count]
    return [point for point in points if point.method.name in names]


def _rate(experiment: Experiment, one: Method) -> float:
    return experiment.settings_for(one).learning_rate


def _grid_points(one: Method, rates: Sequence[float], seed: int = 0) -> list[Point]:
    return [Point(one, rate, GRID_EPOCHS, EIGHTH, seed) for rate in rates]


def _made(outputs: Path, name: str) -> pd.DataFrame:
    table = sweep_records.read(outputs / f"{name}.csv")
    if table.empty:
        raise ConfigurationError(f"{outputs} holds no {name}.csv: make the group {name} first.")
    return table


def _best_rate(table: pd.DataFrame, name: str) -> float:
    """The rate with the lowest validation loss, which says more than ROUGE where differences are small."""
    rows = table[(table["method"] == name) & (table["diverged"] == 0)]
    if rows.empty:
        raise ConfigurationError(f"grid.csv holds no point of {name}: make the group grid first.")
    return float(rows.loc[rows["eval_loss"].idxmin(), "learning_rate"])


def _around(rate: float, rates: Sequence[float]) -> list[float]:
    """A rate and its neighbours, or the three at the end where it is the first or last."""
    place = min(range(len(rates)), key=lambda number: abs(math.log(rates[number] / rate)))
    start = min(max(place - 1, 0), len(rates) - 3)
    return list(rates[start : start + 3])
