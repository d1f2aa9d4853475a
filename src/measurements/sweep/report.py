"""What a sweep's records say of methods, of the data, and of the literature's claims about LoRA, as tables.

On learning rates, layers and rank the claims are those of Schulman et al. 2025, "LoRA Without Regret", on variants of
Lee et al. 2026, arXiv 2602.04998. The grid is judged on validation loss, which shows smaller differences than ROUGE.
Several seeds stand behind each claim, every one with its own sample of dialogues, first weights and order, all
validated on the same dialogues: differences are taken seed by seed, and their 95 % interval is Student's t over seeds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dialogue_summarization import report, rouge, runs
from dialogue_summarization.evaluation import comparison, systems
from dialogue_summarization.evaluation.statistics import compare, holm
from dialogue_summarization.intervals import resampled_means

from . import records
from .trials import ALPHA, BATCH_SIZES, VARIANTS

BALANCED = "lora-balanced"
HOLDS_BETWEEN = {
    "best rate about ten times full's (factor 3.3 to 30)": (10 / 3, 30),
    "best rate hardly depends on the rank (factor 0.33 to 3)": (1 / 3, 3),
    "attention falls short of the MLP (loss difference above 0)": (0, np.inf),
    "LoRA meets full fine-tuning (loss difference below 0.02)": (-np.inf, 0.02),
    "LoRA falls behind full as the batch grows (growth of the loss difference above 0)": (0, np.inf),
    "rsLoRA is better than plain LoRA at rank 64 (loss difference below 0)": (-np.inf, 0),
    f"variants are within 2 % of {BALANCED} (ROUGE-L)": (-0.02, 0.02),
}
TEN_TIMES, SAME_RATE, ATTENTION_BEHIND, MEETS_FULL, BATCH_GROWS, RSLORA_BETTER, VARIANTS_NEAR = HOLDS_BETWEEN
AT_END = "cannot tell: a best rate lies at the end of those tried"


def load(folder: Path, name: str) -> pd.DataFrame:
    """The trials of a search space and of its repeats, without those that diverged. Raises `RecordError`."""
    table = pd.concat([records.read(folder / f"{file}.csv") for file in (name, f"{name}-repeats")])
    return table[table["diverged"] == 0].reset_index(drop=True)


def load_tested(folder: Path, name: str) -> list[systems.System]:
    """What a search space and its repeats scored on test: a system per method and number of training dialogues.

    Raises:
        RecordError: A record is damaged.
    """
    groups: dict[tuple[str, int], list[runs.Run]] = {}
    for file in (name, f"{name}-repeats"):
        for path in sorted((folder / file).glob("*/share-*/seed-[0-9]/metrics.json")):
            run = runs.read(path.parent)
            groups.setdefault((run.name, run.config.dialogues["train"]), []).append(run)
    return [
        systems.System(method, "run", np.stack([run.scores for run in several]), runs=tuple(several))
        for (method, _), several in sorted(groups.items())
    ]


def methods(tested: Sequence[systems.System], trials: pd.DataFrame) -> pd.DataFrame:
    """One row per method, best first: its best rate, test scores, distance to balanced LoRA, and what training took.

    A rate marked `<` or `>` is the lowest or highest that was tried: a better one may lie beyond. The distance is in
    ROUGE-L, in per cent of balanced LoRA's; the verdict is after Holm's correction for the number of methods.

    Args:
        tested: As `load_tested` gives it.
        trials: As `load` gives them.
    """
    distances, rows = over_balanced(tested), []
    for one in sorted(tested, key=lambda one: -one.score("rougeL")):
        config = one.runs[0].config
        own = trials[(trials["method"] == one.name) & (trials["seed"] == config.seed)].sort_values("learning_rate")
        place = int(np.argmin(np.abs(own["learning_rate"] - config.settings["learning_rate"])))
        trial = own.iloc[place]
        end = {0: "<", len(own) - 1: ">"}.get(place, "") if len(own) > 1 else ""
        row = {"method": one.name, "rate": f"{end}{trial['learning_rate']:.2g}", "seeds": len(one.runs)}
        for name in rouge.TYPES[:3]:
            row[report.HEADINGS[name]] = report.with_interval(one.score(name), one.interval(name))
        *over, said = distances.get(one.name, (np.nan, np.nan, np.nan, "–"))
        row |= {"over balanced": report.with_interval(over[0], over[1:], "+.1%"), "verdict": said}
        row |= {"trained": f"{trial['trainable_parameters'] / trial['parameters']:.2%}", "steps": trial["steps_are"]}
        row |= {"training s": round(trial["train_seconds"]), "peak GB": round(trial["peak_memory_bytes"] / 1e9, 1)}
        rows.append(row | {"adapter MB": round(trial["adapter_bytes"] / 1e6, 1)})
    return pd.DataFrame(rows, columns=rows[0] if rows else ["method"]).set_index("method").astype(object).fillna("–")


def over_balanced(tested: Sequence[systems.System]) -> dict[str, tuple[float, float, float, str]]:
    """Each method's ROUGE-L over balanced LoRA's, as a fraction of it: mean, ends of the 95 % interval, verdict.

    Nothing where balanced LoRA is not there.
    """
    base = next((one for one in tested if one.name == BALANCED), None)
    others = [one for one in tested if base and one is not base]
    p_values = holm([compare(one.scores("rougeL"), base.scores("rougeL")).p for one in others])
    equivalent = holm([compare(one.scores("rouge1"), base.scores("rouge1")).p_equivalent for one in others])
    distances = {}
    for one, *both in zip(others, p_values, equivalent, strict=True):
        ratios = resampled_means(one.scores("rougeL"), stream=1) / resampled_means(base.scores("rougeL"), stream=2)
        low, high = np.percentile(ratios - 1, [2.5, 97.5])
        distances[one.name] = one.score("rougeL") / base.score("rougeL") - 1, low, high, comparison.verdict(*both)
    return distances


def claims(
    grid: pd.DataFrame, tested: Sequence[systems.System] = (), further: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row per comparison that a claim rests on, none where its records are missing.

    A claim holds where the whole interval lies in its range, and does not where none of it does.

    Args:
        grid: The trials of the search space `grid`, as `load` reads them.
        tested: What the search space `methods` scored, as `load_tested` reads it.
        further: The trials of the search space `claims`, as `load` reads them.
    """
    rows, distances = list(_grid_comparisons(best_rates(grid))), over_balanced(tested)
    if further is not None:
        rows += _further_comparisons(best_rates(pd.concat([grid, further])))
    rows += [(VARIANTS_NEAR, name, distances[name][:3], False) for name in VARIANTS if name in distances]
    cells = []
    for claim, compared, (mean, low, high), at_end in sorted(rows, key=lambda row: list(HOLDS_BETWEEN).index(row[0])):
        least, most = HOLDS_BETWEEN[claim]
        said = "does not hold" if low >= most or high <= least else "cannot tell"
        said = AT_END if at_end else "holds" if least < low and high < most else said
        interval = f"{low:.2g} to {high:.2g}" if np.isfinite(high) else "one seed"
        cells.append((claim, compared, f"{mean:.2g}", interval, said))
    return pd.DataFrame(cells, columns=["claim", "compared", "effect", "95 % interval", "verdict"]).set_index("claim")


def best_rates(grid: pd.DataFrame) -> pd.DataFrame:
    """One row per method and seed: its trial with the lowest loss, and `log_rate` of the best rate between those tried.

    It is the lowest point of the parabola through the lowest of the losses and its neighbours, over the logarithm of
    the rate. With the middle of three rates lowest it ends no further than halfway to its neighbours. `at_end` says
    that there is no neighbour on one side: the best rate may lie beyond.
    """
    rows = []
    for _, trials in grid.groupby(["method", "seed"], sort=False):
        trials = trials.sort_values("learning_rate")
        rates, losses = np.log10(trials["learning_rate"].to_numpy()), trials["eval_loss"].to_numpy()
        place = int(losses.argmin())
        rate, at_end = rates[place], place in (0, len(losses) - 1)
        if not at_end:
            around = slice(place - 1, place + 2)
            curve = np.polyfit(rates[around] - rate, losses[around], 2)
            rate -= curve[1] / (2 * curve[0])
        rows.append({**trials.iloc[place], "log_rate": rate, "at_end": at_end, "rates_tried": len(trials)})
    return pd.DataFrame(rows, columns=[*grid, "log_rate", "at_end", "rates_tried"])


def over_seeds(values: Sequence[float]) -> np.ndarray:
    """The mean and the ends of its t-interval, which one seed leaves without bounds."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.inf
    return np.mean(values) + np.array([0, -half, half])


def _grid_comparisons(best: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray, bool]]:
    """Claim, what is compared, effect, and whether another rate might change it."""
    tried = best[best["rates_tried"] >= 3]
    ladder = tried[tried["targets"] == "all linear"].sort_values("rank", kind="stable")
    doubled = ladder[(ladder["alpha"] == 2 * ladder["rank"]) & (ladder["alpha"] != ALPHA)]["method"].unique()
    pairs = [(TEN_TIMES, name, "full") for name in _repeated(tried)]
    for names in (_repeated(ladder[ladder["alpha"] == ALPHA]), doubled):
        pairs += [(SAME_RATE, names[-1], names[0])] if len(names) > 1 else []
    attention, mlp = (_repeated(best[best["targets"] == targets]) for targets in ("attention", "MLP"))
    pairs += [(ATTENTION_BEHIND, one, other) for one in attention for other in mlp]
    pairs += [(MEETS_FULL, name, "full") for name in _repeated(tried)]
    rates, ends = (tried.pivot(index="seed", columns="method", values=name) for name in ("log_rate", "at_end"))
    losses = best.pivot(index="seed", columns="method", values="eval_loss")
    ended = set(tried.loc[tried["at_end"].astype(bool), "method"])
    for claim, one, other in pairs:
        is_rate = claim in (TEN_TIMES, SAME_RATE)
        values = (rates if is_rate else losses).reindex(columns=[one, other]).dropna()
        if values.empty:
            continue
        effect = over_seeds(values[one] - values[other])
        at_end = claim == ATTENTION_BEHIND and effect[1] > 0 and one in ended
        if is_rate:
            effect, at_end = 10**effect, bool(ends.loc[values.index, [one, other]].any(axis=None))
        yield claim, f"{_title(best, one)}; {_title(best, other)}", effect, at_end


def _further_comparisons(best: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray, bool]]:
    losses = best.pivot(index="seed", columns="method", values="eval_loss")
    ended = set(best.loc[best["at_end"].astype(bool) & (best["rates_tried"] >= 3), "method"])
    pairs = [(ATTENTION_BEHIND, "lora-r33-attention", "lora-r20-mlp")]
    pairs += [(RSLORA_BETTER, "lora-r64-all-linear-rslora", "lora-r64-all-linear")]
    by_batch = {size: (f"lora-r16-all-linear-batch-{size}", f"full-batch-{size}") for size in BATCH_SIZES}
    pairs += [(MEETS_FULL, *both) for both in by_batch.values()]
    gaps = {}
    for claim, *both in pairs:
        if set(both) <= set(losses):
            gap = gaps[both[0]] = (losses[both[0]] - losses[both[1]]).dropna()
            yield claim, "; ".join(_title(best, name) for name in both), over_seeds(gap), not ended.isdisjoint(both)
    small, large = (gaps.get(by_batch[size][0]) for size in BATCH_SIZES)
    if small is not None and large is not None:
        at_end = any(name in ended for both in by_batch.values() for name in both)
        yield BATCH_GROWS, "batch {}; batch {}".format(*reversed(BATCH_SIZES)), over_seeds(large - small), at_end


def _repeated(best: pd.DataFrame) -> list[str]:
    """Adapters with several seeds, by their rank."""
    adapters = best[best["method"] != "full"].sort_values("rank", kind="stable")
    seeds = adapters.groupby("method", sort=False)["seed"].nunique()
    return list(seeds.index[seeds > 1])


def _title(best: pd.DataFrame, name: str) -> str:
    own = best[best["method"] == name]
    trial, rates = own.iloc[0], " or ".join(f"{rate:.2g}" for rate in sorted(own["learning_rate"].unique()))
    batch = f", batch {name.rpartition('-')[2]}" if "-batch-" in name else ""
    if name.startswith("full"):
        return f"full{batch} ({trial['train_tokens']:,.0f} summary tokens, rate {rates})"
    alpha = "" if trial["alpha"] == ALPHA else f", alpha {trial['alpha']:.0f}"
    alpha += ", rsLoRA" if name.endswith("rslora") else ""
    size = f"{trial['trainable_parameters']:,.0f} parameters"
    return f"rank {trial['rank']:.0f}, {trial['targets']}{alpha}{batch} ({size}, rate {rates})"
