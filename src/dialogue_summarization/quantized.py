"""What the records say of bases held in 8 and 4 bits: beside the same base in fp32, writing and under an adapter."""

from pathlib import Path

import pandas as pd

from . import runs, sweep_records
from .measured import FOLDER
from .memory import GIB
from .methods import UNTRAINED
from .report import HEADINGS, with_interval
from .rouge import TYPES
from .significance import compare, interval

RECORDS = FOLDER / "quantized"  # a folder an experiment and run, with each dialogue's scores in place of its summary
TRAINED = ("lora-all-linear", "qlora-int8", "qlora-nf4")  # one adapter on three bases


def writing(weights: dict[str, int], folder: Path = RECORDS) -> pd.DataFrame:
    """A row a base, untrained: its test scores, their distance to the same base in fp32, and what writing took.

    Args:
        weights: Bytes of each run's weights, from the record `weights`.
        folder: Where the records are.
    """
    rows = []
    for experiment in ("smollm2-dialogsum", "quickstart"):
        base = None
        for name in UNTRAINED:
            place = folder / experiment / name / "seed-0"
            if not place.exists():
                continue
            scores = pd.read_csv(place / sweep_records.SCORES)
            base = scores if base is None else base
            metrics, made = (runs.read_json(place / f"{file}.json") for file in ("metrics", "environment"))
            gap = compare(scores["rougeL"], base["rougeL"])
            rows.append({
                "run": name,
                "dialogues": len(scores),
                **{HEADINGS[kind]: with_interval(scores[kind].mean(), interval(scores[kind])) for kind in TYPES[:3]},
                "ROUGE-L over fp32": "–" if base is scores else with_interval(gap.mean, (gap.low, gap.high), "+.3f"),
                "weights MiB": round(weights[name] / 2**20),
                "seconds": metrics["generate_seconds"],
                "device": made["device"],
            })  # fmt: skip
    return pd.DataFrame(rows).set_index("run")


def training(points: pd.DataFrame) -> pd.DataFrame:
    """A row a base under the same adapter, of a sweep's points: the best rate on validation, and memory.

    Args:
        points: The group `methods`, as `sweep_report.load` gives it.
    """
    rows = []
    for name in TRAINED:
        own = points[(points["method"] == name) & (points["seed"] == 0)]
        if own.empty:
            continue
        best = own.loc[sweep_records.score(own).idxmax()]
        rows.append({
            "run": name,
            "rate": f"{best['learning_rate']:.2g}",
            **{f"validation {HEADINGS[kind]}": f"{best[kind]:.3f}" for kind in TYPES[:3]},
            "validation loss": f"{best['eval_loss']:.3f}",
            "steps": best["steps_are"],
            "peak GiB": f"{best['peak_memory_bytes'] / GIB:.1f}",
            "device": best["device"],
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("run")
