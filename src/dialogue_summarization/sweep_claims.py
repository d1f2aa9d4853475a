"""The literature's claims about LoRA's rates, targets and rank, held against a grid: sentences that are computed.

The claims are those of Schulman et al. 2025, "LoRA Without Regret". Each is judged on validation loss, which shows
smaller differences than ROUGE. Several seeds stand behind each, every one with its own sample of dialogues, start and
order, all validated on the same dialogues: differences are taken seed by seed, and their 95 % interval is Student's t
over seeds. Where the interval leaves it open, the sentence says that the grid cannot tell.

What a rate may come out as is bounded by the grid: with the middle of three rates lowest, the parabola through them
ends no further than halfway to its neighbours. Its interval is over seeds and knows nothing of that error, so the
sentences name the rates of the grid too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from .sweep_points import ALPHA

TEN = (10 / 3, 30)  # what still is "about ten times": half a power of ten either way
SAME_RATE = 3  # what still is "hardly depends": a factor between the rates of the lowest and highest rank
MEET = 0.02  # nats a token: what still is "meets", 2 % of perplexity
CANNOT = "the grid cannot tell"
AT_END = f"{CANNOT}: a best rate lies at the end of those tried"
NO_GRID = "The grid cannot tell: make the groups grid and grid-repeats."


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, which one seed leaves without bounds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __format__(self, spec: str) -> str:
        if self.seeds == 1:
            return f"{self.mean:{spec}} (one seed)"
        return f"{self.mean:{spec}} (interval {self.low:{spec}} to {self.high:{spec}}, {self.seeds} seeds)"


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and t-interval."""
    values = np.asarray(values, dtype=float)
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return Estimate(mean, -np.inf, np.inf, count)
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)
    return Estimate(mean, mean - half, mean + half, count)


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """A row a method and seed of a grid: its best point, and the best rate between those tried.

    `rate` is the lowest point of the parabola through the lowest of the losses and its neighbours, over the logarithm
    of the rate. At the `edge` there is no neighbour on one side: the best rate may lie beyond.
    """
    rows = []
    for _, points in table.groupby(["method", "seed"], sort=False):
        points = points.sort_values("learning_rate")
        rates, losses = np.log10(points["learning_rate"].to_numpy()), points["eval_loss"].to_numpy()
        place = int(losses.argmin())
        edge = place in (0, len(losses) - 1)
        rate = rates[place]
        if not edge:
            around = slice(place - 1, place + 2)
            curve = np.polyfit(rates[around] - rate, losses[around], 2)
            rate -= curve[1] / (2 * curve[0])
        rows.append({**points.iloc[place], "rate": 10.0**rate, "edge": edge, "points": len(points)})
    return pd.DataFrame(rows, columns=[*table, "rate", "edge", "points"])


def ten_times(table: pd.DataFrame) -> list[str]:
    """Whether LoRA's best rate is about ten times full fine-tuning's."""
    best = best_rates(table)
    lines = []
    for name in _repeated(best):
        factor, edge = _factor(best, name, "full")
        if factor is None:
            continue
        said = (
            AT_END if edge
            else "about ten times, as claimed" if TEN[0] < factor.low and factor.high < TEN[1]
            else "not about ten times" if factor.low > TEN[1] or factor.high < TEN[0]
            else CANNOT
        )  # fmt: skip
        tried = f"lowest loss at a rate of {_lowest(best, name)}, full's at {_lowest(best, 'full')}"
        lines.append(f"{_title(best, name)}: {tried}; in between, divided by full's, {factor:.2g}: {said}.")
    return lines or [NO_GRID]


def by_rank(table: pd.DataFrame) -> list[str]:
    """Whether LoRA's best rate depends on the rank; then, without an interval, what alpha = 2 x rank does to that."""
    best = best_rates(table)
    ladder = best[(best["targets"] == "all linear") & (best["alpha"] == ALPHA)]
    ranks = ladder.drop_duplicates("method").set_index("method")["rank"].to_dict()
    repeated = _repeated(ladder)
    if len(repeated) < 2:
        return [NO_GRID]
    low, high = repeated[0], repeated[-1]
    factor, edge = _factor(best, high, low)
    if factor is None:
        return [NO_GRID]
    said = (
        AT_END if edge
        else "it hardly depends on the rank, as claimed" if factor.low > 1 / SAME_RATE and factor.high < SAME_RATE
        else "it depends on the rank" if factor.low > SAME_RATE or factor.high < 1 / SAME_RATE
        else CANNOT
    )  # fmt: skip
    text = f"From rank {ranks[low]:.0f} to {ranks[high]:.0f}"
    lines = [f"{text}, with alpha {ALPHA}, the best rate changes by a factor of {factor:.2g}: {said}."]
    doubled = best[(best["targets"] == "all linear") & (best["alpha"] == 2 * best["rank"]) & (best["alpha"] != ALPHA)]
    doubled = doubled.sort_values("rank")
    if len(doubled) > 1:
        (_, first), *_, (_, last) = doubled.iterrows()
        ends = ", a bound, since a best rate lies at the end of those tried" if doubled["edge"].any() else ""
        both = " to ".join(f"{point['rate']:.2g} at rank {point['rank']:.0f}" for point in (first, last))
        change = f"a factor of {last['rate'] / first['rate']:.2g} (one seed{ends})"
        lines.append(f"With alpha = 2 x rank it goes from {both}, {change}.")
    return lines


def lowest_losses(table: pd.DataFrame) -> str:
    """The lowest loss of each set of layers over all ranks, and full fine-tuning's, of the seed that all have."""
    best = best_rates(table)
    best = best[(best["seed"] == best["seed"].min()) & (best["alpha"].isna() | (best["alpha"] == ALPHA))]
    if best.empty:
        return NO_GRID
    lowest = best.loc[best.groupby(best["targets"].fillna("full"))["eval_loss"].idxmin()]
    said = []
    for _, point in lowest.sort_values("eval_loss").iterrows():
        name = "full" if point["method"] == "full" else f"{point['targets']} (rank {point['rank']:.0f})"
        said.append(f"{name} {point['eval_loss']:.3f}{', at the end of the rates tried' if point['edge'] else ''}")
    return f"Lowest loss over all ranks and rates, one seed: {'; '.join(said)}."


def attention_or_mlp(table: pd.DataFrame) -> list[str]:
    """Whether attention alone falls short of the MLP, each at its best rate."""
    best = best_rates(table)
    names = _repeated(best, points=1)
    targets, weights = (
        best.drop_duplicates("method").set_index("method")[name] for name in ("targets", "trainable_parameters")
    )
    lines = []
    for mlp in (name for name in names if targets[name] == "MLP"):
        for name in (name for name in names if targets[name] == "attention"):
            gap = _gap(best, name, mlp)
            said = "attention falls short" if gap.low > 0 else "attention does better" if gap.high < 0 else CANNOT
            if gap.low > 0 and best.loc[(best["method"] == name) & (best["points"] >= 3), "edge"].any():
                said = "attention is behind, but its best rate lies at the end of those tried: another may change that"
            both = " against ".join(f"{_title(best, one)} ({weights[one]:,.0f} weights)" for one in (name, mlp))
            lines.append(f"{both}: difference in loss {gap:+.3f}: {said}.")
    return lines or [NO_GRID]


def meets_full(table: pd.DataFrame) -> list[str]:
    """Whether LoRA meets full fine-tuning, at each rank, both at their best rates."""
    best = best_rates(table)
    lines = []
    for name in _repeated(best):
        if "full" not in set(best["method"]):
            break
        gap = _gap(best, name, "full")
        said = (
            f"they meet within {MEET:g}" if gap.low > -MEET and gap.high < MEET
            else "LoRA falls short" if gap.low > MEET
            else f"LoRA is behind, perhaps by less than {MEET:g}: whether they meet, {CANNOT}" if gap.low > 0
            else "LoRA does better" if gap.high < 0
            else CANNOT
        )  # fmt: skip
        first = best[best["method"] == name].iloc[0]
        size = f"{first['trainable_parameters']:,.0f} weights, {first['train_tokens']:,.0f} summary tokens"
        lines.append(f"{_title(best, name)} ({size}): difference in loss to full {gap:+.3f}: {said}.")
    return lines or [NO_GRID]


def _repeated(best: pd.DataFrame, points: int = 3) -> list[str]:
    """Adapters with several seeds of so many rates or more, by their rank."""
    adapters = best[(best["points"] >= points) & (best["method"] != "full")].sort_values("rank", kind="stable")
    counts = adapters.groupby("method", sort=False)["seed"].nunique()
    return list(counts.index[counts > 1])


def _wide(best: pd.DataFrame, one: str, other: str, column: str) -> pd.DataFrame:
    """Both methods' values, a row a seed that both have."""
    chosen = best[best["method"].isin([one, other])]
    return chosen.pivot(index="seed", columns="method", values=column).reindex(columns=[one, other]).dropna()


def _factor(best: pd.DataFrame, one: str, other: str) -> tuple[Estimate | None, bool]:
    """The best rate of one in units of another's, a geometric mean over seeds, and whether any lies at an edge."""
    best = best[best["points"] >= 3]
    rates = _wide(best, one, other, "rate")
    if rates.empty:
        return None, False
    log = over_seeds(np.log10(rates[one] / rates[other]))
    edge = bool(_wide(best, one, other, "edge").to_numpy(dtype=bool).any())
    return Estimate(10**log.mean, 10**log.low, 10**log.high, log.seeds), edge


def _gap(best: pd.DataFrame, one: str, other: str) -> Estimate:
    """One method's lowest validation loss minus another's, over the seeds that both have."""
    losses = _wide(best, one, other, "eval_loss")
    return over_seeds(losses[one] - losses[other])


def _lowest(best: pd.DataFrame, name: str) -> str:
    """The rates, of those tried, with the lowest loss in each seed."""
    rates = best.loc[(best["method"] == name) & (best["points"] >= 3), "learning_rate"].unique()
    return " or ".join(f"{rate:.2g}" for rate in sorted(rates))


def _title(best: pd.DataFrame, name: str) -> str:
    first = best[best["method"] == name].iloc[0]
    return f"rank {first['rank']:.0f}, {first['targets']}"
