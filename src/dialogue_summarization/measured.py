"""What the committed measurements say: tables, figures and sentences of whatever records there are.

Records are the JSON files that `python -m dialogue_summarization.benchmark` writes.
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM

from . import experiments, figures, memory, models, runs, small_cards, throughput, whole_study
from .base_models import title
from .memory import GIB, Lengths, Shape
from .runs import Run

FOLDER = runs.OUTPUTS / "benchmarks"
TWO_GPUS = FOLDER / "two-gpus"  # what was measured on two GPUs, and on one beside it
RUNS = (("smollm2", "full"), ("smollm2", "lora-balanced"), ("t5-base", "full"), ("t5-base", "lora-balanced"))
LENGTHS = {  # of all 12,460 training pairs of DialogSum, in SmolLM2's tokens; prompts as the experiments cut them
    "smollm2": Lengths(1024, 248, 279, 117),
    "t5-base": Lengths(512, 248, 258, 106),
}
LARGE = 79  # GiB of an H100, as CUDA reports it
COMMAND = "uv run python -m dialogue_summarization.benchmark"
EXPECTED = (
    *throughput.ENTRIES, "generate-beams1", "generate-beams4", *(f"fits-{gib}" for gib in small_cards.CARDS),
    *(f"fits-{gib}-packed" for gib in small_cards.CARDS), "growth", *whole_study.NAMES,
)  # fmt: skip


def records(folder: str | Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every record of a folder, by its name."""
    found = (json.loads(path.read_text("utf-8")) for path in sorted(Path(folder).glob("*.json")))
    return {entry["name"]: entry for entry in found if "name" in entry}


def missing(found: dict[str, Any], expected: Sequence[str] = EXPECTED) -> str:
    """A sentence: what has no record, and the command that makes it."""
    names = [name for name in expected if name not in found]
    if not names:
        return "Nothing is missing."
    said = f"Not measured yet: {', '.join(names)}. On the device in question:"
    lines = (said, f"{COMMAND} {' '.join(names)} --dataset PATH")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, 110, break_on_hyphens=False))


def gains(found: dict[str, Any]) -> pd.DataFrame:
    """How many times a plain run's samples a second, and which share of its memory, the fast run has. A row a pair."""
    rows = []
    for name, fast in found.items():
        plain = found.get(f"{name}-plain", {})
        if "samples_per_second" not in fast or "samples_per_second" not in plain:
            continue
        entry, rates = throughput.ENTRIES.get(name), [one["samples_per_second"] for one in (plain, fast)]
        trained = (
            entry.warm_up * entry.batch_size / rates[1] if entry else 0
        )  # seconds of the warm-up that were training
        pays = (fast["warm_up_seconds"] - trained) / (1 / rates[0] - 1 / rates[1])
        rows.append({
            "model": title(fast["model"]),
            "run": fast["method"],
            "plain, samples/s": round(rates[0]),
            "fast, samples/s": round(rates[1]),
            "times": f"{rates[1] / rates[0]:.1f}",
            "memory": f"{fast['peak_memory_bytes'] / plain['peak_memory_bytes']:.0%}",
            "compiling pays after pairs": f"{pays:,.0f}",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("model") if rows else pd.DataFrame()


def tried(folder: Path = FOLDER) -> pd.DataFrame:
    """What was tried for T5's steps on the way, a row each, and what stayed."""
    kept = {name: one for name, one in records(folder).items() if name in ("t5-base-full", "t5-base-lora")}
    steps = "norms and feed-forward layers compiled, the tuned kernel, packed batches, graphs: what stayed"
    rows = [one for one in records(folder / "tried").values() if one["model"] == "t5-base"]
    rows += [one | {"what": steps} for one in kept.values()]
    return pd.DataFrame([{
        "run": one["method"],
        "steps": one["what"],
        "samples/s": round(one["samples_per_second"]),
        "peak GiB": f"{one['peak_memory_bytes'] / GIB:.1f}",
        "warm-up s": round(one["warm_up_seconds"]),
        "device": one["device"],
    } for one in rows]).sort_values(["run", "samples/s"]).set_index("run")  # fmt: skip


def gains_figure(table: pd.DataFrame) -> Figure:
    """`gains` as bars."""
    figure, (ax,) = figures.panels(width=7.5, height=0.7 * len(table) + 1)
    names = [f"{model}\n{run}" for model, run in zip(table.index, table["run"], strict=True)]
    for offset, kind, shade in ((-0.19, "plain", "#a9c0e0"), (0.19, "fast", "#1b3a6b")):
        values = table[f"{kind}, samples/s"]
        bars = ax.barh([place + offset for place in range(len(names))], values, 0.36, color=shade, label=kind)
        ax.bar_label(bars, padding=3, fontsize="small")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="pairs trained on a second")
    ax.legend(frameon=False)
    return figure


def writing(found: dict[str, Any]) -> pd.DataFrame:
    """A row a measured way of writing summaries."""
    rows = [
        {"beams": entry["num_beams"], "GPUs": entry.get("gpus", 1), "summaries": entry["dialogues"],
         "seconds": entry["seconds"], "summaries/s": round(entry["dialogues"] / entry["seconds"]),
         "device": entry["device"]}
        for entry in found.values() if "num_beams" in entry
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("beams").sort_index() if rows else pd.DataFrame()


def shape(model: str, method: str) -> Shape:
    """The shape of a model of `RUNS` as a method trains it; no weights are made."""
    with torch.device("meta"):
        if model == "smollm2":
            config = AutoConfig.from_pretrained(models.resolve(experiments.PACKAGED_MODEL))
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            network = throughput.t5(model)
        return memory.shape_of(models.adapt(network, experiments.method(method)))


def cards(found: dict[str, Any], sizes: Sequence[float] = small_cards.CARDS, packed: bool = False) -> pd.DataFrame:
    """What cards of so many GiB hold of each run, planned and, where there is a record, measured.

    Args:
        found: See `records`.
        sizes: The cards.
        packed: Packed and compiled steps instead of plain ones.
    """
    rows = []
    for model, method in RUNS:
        known = shape(model, method)
        for gib in sizes:
            record = found.get(f"fits-{gib:g}" + ("-packed" if packed else ""), {"runs": ()})
            run = next((one for one in record["runs"] if (one["model"], one["method"]) == (model, method)), {})
            plan = memory.plan(int(gib * GIB), small_cards.BATCH_SIZE, known, LENGTHS[model], packed=packed)
            rows.append({
                "model": title(model),
                "run": method,
                "card GiB": f"{gib:g}",
                "at once × accumulated": f"{plan.micro_batch} × {plan.accumulation}",
                "checkpointing": "yes" if plan.checkpointing else "no",
                "planned GiB": f"{plan.bytes / GIB:.1f}",
                "measured GiB": _measured(run, plan),
            })  # fmt: skip
    return pd.DataFrame(rows).set_index("model")


def advice(found: dict[str, Any], packed: bool = False) -> pd.DataFrame:
    """`cards` for reading at a glance: a row a card, a column a run; with one of `LARGE` GiB."""
    table = cards(found, (*small_cards.CARDS, LARGE), packed)
    rows: dict[str, dict[str, str]] = {}
    for model, row in table.iterrows():
        took = row["measured GiB"]
        said = f"planned {row['planned GiB']} GiB" if took == "–" else took if took.isalpha() else f"{took} GiB"
        again = ", checkpointing" if row["checkpointing"] == "yes" else ""
        run = f"{model}, {row['run']}"
        rows.setdefault(f"{row['card GiB']} GiB", {})[run] = f"{row['at once × accumulated']}{again}; {said}"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("card")


def _measured(run: dict[str, Any], plan: memory.Plan) -> str:
    if "failed" in run:
        return run["failed"].partition(":")[0]
    if not run:
        return "–"
    halved = f", halved to {run['micro_batch']}" if run["micro_batch"] < plan.micro_batch else ""
    return f"{run['train_bytes'] / GIB:.1f}{halved}"


def parts(at_once: int = 2) -> pd.DataFrame:
    """GiB that training takes by what takes them, estimated, for so many of DialogSum's longest pairs at once."""
    rows = []
    for model, method in RUNS:
        known = shape(model, method)
        rows.append({
            "model": title(model),
            "run": method,
            "weights": known.weight_bytes,
            "gradients": 4 * known.trained,
            "AdamW": 8 * known.trained,
            "copies in 16 bits": known.weight_bytes // 2,
            "activations and logits": memory.activation_bytes(at_once, known, LENGTHS[model]),
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index(["model", "run"]) / GIB
    return table.assign(**{"in all": table.sum(axis=1)}).round(2)


def parts_figure(table: pd.DataFrame) -> Figure:
    """`parts` as bars, with what a card of 6 to 24 GiB leaves as lines."""
    figure, (ax,) = figures.panels(width=8, height=3.2)
    names, left = [f"{model}\n{run}" for model, run in table.index], 0
    shades = ("#1b3a6b", "#5c7fb5", "#a9c0e0", "#d9603b", "#f0b94a")
    for (column, values), shade in zip(table.drop(columns="in all").items(), shades, strict=True):
        ax.barh(names, values, left=left, label=column, color=shade, edgecolor="white")
        left = left + values.to_numpy()
    for gib in small_cards.CARDS:
        room = gib - memory.CONTEXT / GIB
        if room < 1.3 * max(left):
            ax.axvline(room, color="black", linestyle=":", linewidth=1)
            ax.annotate(f"{gib} GiB", (room, -0.5), ha="center", va="bottom", fontsize="small")
    ax.invert_yaxis()
    ax.set(xlabel="GiB while training, estimated; dotted: what a card of that size leaves")
    figure.legend(frameon=False, ncols=5, loc="outside lower center", fontsize="small")
    return figure


def losses_figure(found: dict[str, Any], name: str = "smollm2-lora") -> Figure:
    """The loss of plain and fast steps, each point the mean of ten steps. The order of pairs differs between them."""
    figure, (ax,) = figures.panels()
    for which, style in ((f"{name}-plain", "--"), (name, "-")):
        if which in found and which in throughput.ENTRIES:
            values, steps = found[which]["losses"], throughput.ENTRIES[which].steps
            every = found[which].get("steps_a_loss", steps / len(values))
            several = max(1, round(10 / every))
            means = [sum(values[at : at + several]) / several for at in range(0, len(values) + 1 - several, several)]
            ax.plot([every * several * (place + 1) for place in range(len(means))], means, style, marker="o",
                    color="#d9603b" if style == "-" else "#1b3a6b", label=which)  # fmt: skip
    ax.set(xlabel="step of the optimizer", ylabel="cross-entropy a token (nats)")
    if ax.lines:
        ax.legend(frameon=False)
    return figure


def data_figure(made: Sequence[Run]) -> Figure:
    """Seconds of training against the pairs seen, from the logs of runs."""
    figure, (ax,) = figures.panels()
    for run in made:
        if not run.log.empty:
            seen = run.log["step"] * run.config.settings["batch_size"]
            ax.plot(
                seen,
                run.log["seconds"],
                "--" if run.config.seed else "-",
                color=figures.colour_of(run),
                label=f"{run.name}, seed {run.config.seed}",
            )
    ax.set(xlabel="pairs seen", ylabel="seconds of training", ylim=(0, None))
    ax.legend(frameon=False, fontsize="small")
    return figure


def padding(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of positions that are padding where each batch, of indices, is padded to its longest; 0 to 1."""
    held = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
    return 1 - sum(lengths[number] for batch in batches for number in batch) / held
