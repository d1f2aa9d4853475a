"""Tables and figures of README and guide: one example, the result in five rows, what it takes, and on which GPU."""

import itertools
import math

import pandas as pd
from datasets import Dataset
from matplotlib.figure import Figure

from dialogue_summarization import experiments, figures, hardware, report, runs
from dialogue_summarization.acceleration import memory
from dialogue_summarization.evaluation import systems
from dialogue_summarization.evaluation.statistics import compare

from . import card_limits, tables
from .tables import REFERENCE

STUDY, QUICKSTART = "smollm2-dialogsum", "quickstart"
WHOLE = "uv run study smollm2-dialogsum"
ADAPTER = f"{WHOLE} --runs zero-shot,lora-balanced"
LENGTHS = tables.LENGTHS["smollm2"]
REACHED = 0.2  # of that rate, in an estimate: compiled steps reach 18 % of an H200's
EMBEDDING = 49_152 * 576  # parameters of SmolLM2-135M that take no arithmetic
GPUS = (  # as sold; GiB; FLOP/s in fp16 by the data sheet, where it has no bf16; command; what to watch out for
    ("6 GB, RTX 20 or GTX 16", 6, 26e12, ADAPTER, "fp16; time of an RTX 2060. Close the browser"),
    ("6 GB, RTX 30 or newer", 6, None, ADAPTER, "bf16. Close the browser"),
    ("8 GB, RTX 30 or newer", 8, None, ADAPTER, "bf16"),
    ("12 GB, RTX 30 or newer", 12, None, WHOLE, "bf16"),
    (
        "T4 in a free cloud notebook",
        15,
        65e12,
        f"{ADAPTER} --limit 2000",
        "fp16. Save to a drive. Then without `--limit`",
    ),
    ("16 GB, RTX 40 or newer", 16, None, WHOLE, "bf16"),
    ("24 GB or more", 24, None, WHOLE, "bf16. Add `--seed 1` and `--seed 2`"),
)


def example(made: list[runs.Run], test: Dataset) -> tuple[str, pd.DataFrame]:
    """The shortest test dialogue whose summary by the committed adapter is right to both readers, and all summaries."""
    made, [adapter] = of_seed_0(made), runs.collect("quickstart-adapter", "nowhere")
    judged = pd.read_csv(REFERENCE / QUICKSTART / "judged.csv").pivot_table("right", "id", "run")
    right = [place for place, name in enumerate(test["id"]) if judged["committed-adapter"].get(name) == 1]
    number = min(right, key=lambda place: len(test[place]["dialogue"]))
    counts = judged.sum().map(f"{{:g}} of {len(judged)}".format)
    rows = {"a reference": (test[number]["summaries"][0], "–")}
    who = ("before fine-tuning", "full fine-tuning", "LoRA", "the included adapter: LoRA")
    for title, run in zip(who, [*made, adapter], strict=True):
        trained_on = f", {run.config.dialogues['train']:,} dialogues" if run.config.settings else ""
        count = counts["committed-adapter" if run is adapter else run.name]
        rows[f"{title}{trained_on}"] = (report.predictions(run, test)[number].replace("\n", "<br>"), count)
    dialogue = test[number]["dialogue"].replace("\n", "<br>")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["summary", "correct"])
    return f"> {dialogue}", table.rename_axis("by")


def result(made: list[runs.Run], test: Dataset) -> tuple[pd.DataFrame, str]:
    """The study in five rows, and how much of the gain is form."""
    rows = {}
    for name in experiments.STUDY_RUNS:
        seeds = [run for run in made if run.name == name]
        costs = pd.DataFrame([run.metrics | {"steady": steady_seconds(run)} for run in seeds]).mean()
        row = {"trainable parameters": "0", "ROUGE-L": f"{costs['rougeL']:.3f}"}
        if name != "zero-shot":
            size = costs.get("adapter_bytes", 4 * costs["parameters"]) / 1e6
            share = 100 * costs["trainable_parameters"] / costs["parameters"]
            row["trainable parameters"] = f"{costs['trainable_parameters'] / 1e6:.3g} M ({share:.3g} %)"
            row |= {"training (s)": f"{costs['train_seconds']:.0f}", "steps alone (s)": f"{costs['steady']:.0f}"}
            row |= {
                "peak memory (GB)": f"{costs['peak_memory_bytes'] / 1e9:.1f}",
                "saved file (MB)": f"{size:.0f}" if size > 10 else f"{size:.1f}",
            }
        rows[tables.label(name)] = row
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method").fillna("–")
    before, after = systems.of_runs([run for run in made if run.name in experiments.STUDY_RUNS[:2]], test)
    form = (after.form_only - before.form_only) / (after.score("rouge1") - before.score("rouge1"))
    said = f"Of full fine-tuning's gain in ROUGE-1, {form:.0%} also appears against references of other dialogues"
    return table, f"{said}: that is style."


def output(made: list[runs.Run], test: Dataset) -> tuple[str, str]:
    """How the quickstart's output ends, shortened, and which differences come from test dialogues and seeds alone."""
    first = of_seed_0(made)
    table = report.results(first)[["ROUGE-L", "training (s)"]].rename_axis(None)
    table = table.rename(index=lambda name: name.replace(" (reference)", "")).to_string()
    pairs = itertools.combinations([one.scores("rougeL") for one in systems.of_runs(first, test)], 2)
    seeds = [run.metrics["rougeL"] for run in made if run.name == "full"]
    noise = max(max(seeds) - min(seeds), *(compare(*pair).minimum_detectable for pair in pairs))
    others = " and ".join(f"{score:.3f}" for score in seeds[1:])
    said = f"Brackets: 95 % intervals over {len(test)} dialogues. Other seeds of `full`: {others}."
    opened = "To open: outputs/quickstart/notebooks/04_evaluation.html"
    return f"```text\n{table}\n{opened}\n```", f"{said} So differences below {noise:.2f} are noise."


def of_seed_0(made: list[runs.Run]) -> list[runs.Run]:
    """The runs that `study` makes unless it is asked for another seed."""
    return [run for run in made if run.config.seed == 0]


def steady_seconds(run: runs.Run) -> float:
    """Seconds of a training's steps, at their median time: without compiling, validating and saving."""
    if run.log.empty:
        return float("nan")
    log = run.log.dropna(subset="loss")
    return float((log["seconds"].diff() / log["step"].diff()).median() * run.log["step"].max())


def needs(made: list[runs.Run], study: list[runs.Run]) -> pd.DataFrame:
    """What each way takes: time and memory as measured, on a CPU and on a large GPU."""
    made, whole = of_seed_0(made), tables.load()["quickstart-cpu"]["seconds"]
    full = next(run for run in made if run.name == "full")
    less = whole - full.metrics["train_seconds"] - full.metrics["generate_seconds"]
    peak = {
        run.name: max(run.metrics.get("peak_memory_bytes", 0), run.metrics["generate_memory_bytes"]) for run in made
    }
    first = [run for run in of_seed_0(study) if run.name in experiments.STUDY_RUNS]
    large = sum(run.metrics.get("train_seconds", 0) + run.metrics["generate_seconds"] for run in first)
    small = peak_on(6, "lora-balanced")
    room = max(run.metrics["generate_memory_bytes"] for run in first)
    rows = {
        "a laptop or PC": (
            "`uv run study`",
            f"{math.ceil(whole / 60)} min on 2 CPU cores",
            f"{peak['full'] / 1e9:.1f} GB of RAM",
        ),
        "only 8 GB of RAM": (
            "`uv run study --runs zero-shot,lora-balanced`",
            f"about {math.ceil(less / 60)} min (estimate)",
            f"{max(peak['zero-shot'], peak['lora-balanced']) / 1e9:.1f} GB of RAM",
        ),
        "a GPU with 6 GB": (
            f"`{ADAPTER}`",
            f"about {adapter_seconds(GPUS[0][2]) / 60:.0f} min (estimate)",
            f"up to {small / 1e9:.1f} GB on the GPU",
        ),
        "a large GPU (H200)": (
            f"`{WHOLE}`",
            f"{math.ceil(large / 60)} min",
            f"up to {room / 1e9:.0f} GB; it also runs with less",
        ),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["run", "time", "memory"]).rename_axis("you have")


def presets(study: list[runs.Run]) -> pd.DataFrame:
    """The settings of each LoRA preset in the study."""
    experiment, rows = experiments.experiment(STUDY), {}
    for name in (*experiments.STUDY_RUNS[1:], "lora-all-linear"):
        method, [run, *_] = experiments.method(name), [run for run in study if run.name == name]
        settings, trained = experiment.settings_for(method), run.metrics["trainable_parameters"]
        row = {"alpha": method.peft["lora_alpha"] if method.peft else "–"}
        row |= {"learning rate": f"{settings.learning_rate:g}", "epochs": f"{settings.epochs:g}"}
        rows[tables.label(name)] = row | {"trainable parameters": f"{trained:,}"}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def gpus() -> pd.DataFrame:
    """For each GPU what to run, whether it fits, and how long it takes; measured and estimated are told apart."""
    rows = {}
    for title, gib, flops, command, watch in GPUS:
        peaks = {name: f"{peak_on(gib, name, is_measured=not flops) / 1e9:.1f}" for name in ("lora-balanced", "full")}
        fits = f"LoRA {peaks['lora-balanced']} GB, full {peaks['full']} GB ({'estimate' if flops else 'measured'})"
        time = f"about {adapter_seconds(flops) / 60:.0f} min (estimate)" if flops else "not timed"
        rows[title] = (f"`{command}`", fits, time, watch)
    columns = ["start with", "peak memory of training", "LoRA on all of DialogSum", "watch out"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("GPU")


def peak_on(gib: int, method: str, *, is_measured: bool = True) -> int:
    """Peak bytes of training SmolLM2 on a GPU of that size: of padded or packed steps, what is more; or as planned."""
    if not is_measured:
        dims = tables.model_dims("smollm2", method)
        return memory.plan_batch(int(gib * hardware.GIB), card_limits.BATCH_SIZE, dims, LENGTHS).bytes
    return max(card_run(f"fits-{gib}{steps}", method)["train_bytes"] for steps in ("", "-packed"))


def adapter_seconds(flops: float, dialogues: int = 12_460, epochs: int = 6) -> float:
    """The estimated time to train SmolLM2's adapter: 4 operations per parameter and token."""
    parameters = tables.model_dims("smollm2", "full").trained - EMBEDDING
    return 4 * parameters * LENGTHS.mean * dialogues * epochs / (REACHED * flops)


def card_run(name: str, method: str) -> dict[str, object]:
    """What SmolLM2 took on a GPU of that size, of `card_limits`' records."""
    [found] = [run for run in tables.load()[name]["runs"] if (run["model"], run["method"]) == ("smollm2", method)]
    return found


def memory_bars() -> Figure:
    """Measured peaks of training as stacked bars: 16 bytes per trained parameter, 4 per frozen one, and the rest."""
    bars = {}
    for name, steps in (("fits-6", "padded"), ("fits-16", "padded"), ("fits-24-packed", "packed")):
        for method, title in (("full", "full"), ("lora-balanced", "LoRA r16")):
            run, dims = card_run(name, method), tables.model_dims("smollm2", method)
            parts = {"parameters": dims.weight_bytes, "gradients": 4 * dims.trained, "AdamW": 8 * dims.trained}
            parts["activations, logits, copies"] = run["train_bytes"] - sum(parts.values())
            bars[f"{title}, {run['micro_batch']} dialogues at once, {steps}"] = parts
    return figures.memory_bars(bars)


def speed_bars() -> Figure:
    """Dialogues per second of plain and of fast steps, each pair on one GPU."""
    rates = {}
    for name in ("smollm2-full", "smollm2-lora", "t5-base-full", "t5-base-lora"):
        plain, fast = tables.load()[f"{name}-plain"], tables.load()[name]
        title = f"{tables.TITLES[fast['model']]},\n{'full' if fast['method'] == 'full' else 'LoRA r16'}"
        rates[title] = {"plain": plain["samples_per_second"], "fast": fast["samples_per_second"]}
    figure, (ax,) = figures.panels(width=8, height=3.2)
    pd.DataFrame(rates).T.plot.barh(ax=ax, width=0.75, color=["#a9c0e0", "#1b3a6b"])
    for container in ax.containers:
        ax.bar_label(container, padding=3, fontsize="small", fmt="%.0f")
    ax.invert_yaxis()
    ax.set(xlabel="dialogues per second in training, one H200")
    ax.legend(frameon=False)
    return figure
