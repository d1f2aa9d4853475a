"""What fine-tuning forgets: how well a model still predicts text that is no dialogue, beside the untrained one.

`python -m measurements forgetting DIR RUN ...`, with folders of runs that have weights. passages.csv holds 286
passages in the public domain: of Alice in Wonderland, The Devil's Dictionary, The Jargon File and Paradise Lost, and of
the United States' Constitution and Declaration of Independence; passages with quotation marks were left out.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import PreTrainedModel

from dialogue_summarization import disk, experiments, hardware, intervals, models, report, runs, study
from dialogue_summarization.errors import ConfigurationError

from .tables import REFERENCE

LARGEST, ALIKE = 10, 0.5  # singular vectors per matrix; absolute cosine from which two are alike
PASSAGES = Path(__file__).with_name("passages.csv")
MEASURED = ["loss", "agreement", "divergence"]  # per token of a passage


def write(target: str, *folders: str) -> None:
    """Measure the base model and the runs; `forgetting.csv` and `intruders.csv` go to the folder `target`.

    Raises `ConfigurationError` where a run has no weights, or its model does not continue texts.
    """
    passages, wanted = list(pd.read_csv(PASSAGES)["text"]), [runs.read(Path(folder)) for folder in folders]
    base = models.load_model(wanted[0].experiment, device=hardware.device())
    measured, intruders = [measure(base, base, passages).assign(run="zero-shot", seed=0)], []
    for run in wanted:
        bundle, known = study.load_run(run), {"run": run.name, "seed": run.config.seed}
        measured.append(measure(bundle, base, passages).assign(**known))
        intruders.append(known | {"intruders": count_intruders(bundle.model, base.model)})
    table = pd.concat(measured).rename_axis("passage").reset_index().round(5)
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_csv(folder / "forgetting.csv", table)
    disk.write_csv(folder / "intruders.csv", pd.DataFrame(intruders).round(3))


@torch.no_grad()
def measure(bundle: models.ModelBundle, base: models.ModelBundle, passages: Sequence[str]) -> pd.DataFrame:
    """A row per passage: `tokens`, and the means over them of `MEASURED`.

    `loss` is in nats; `agreement` is how often the likeliest next token is the base model's; `divergence` is the
    Kullback-Leibler divergence of the model's distribution from the base model's, in nats. Both compute in fp32.
    """
    if bundle.model.config.is_encoder_decoder:
        raise ConfigurationError(
            "An encoder-decoder model does not continue texts: only decoder-only models are asked."
        )
    rows = []
    for text in passages:
        ids = bundle.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(hardware.device())
        ours, theirs = (log_softmax(one.model(ids).logits[0, :-1], dim=-1) for one in (bundle, base))
        row = {"tokens": ids.shape[1] - 1, "loss": cross_entropy(ours, ids[0, 1:]).item()}
        row["agreement"] = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        row["divergence"] = kl_div(ours, theirs, reduction="batchmean", log_target=True).item()
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def count_intruders(model: torch.nn.Module, base: PreTrainedModel) -> float:
    """Intruder dimensions per projection of attention (Shuttleworth et al. 2024, arXiv 2410.21228).

    They are those of a matrix's `LARGEST` left singular vectors that are like none of the untrained matrix.
    """
    trained = model.merge_and_unload() if isinstance(model, peft.PeftModel) else model
    names = models.target_modules(experiments.ATTENTION, base.config.model_type)
    counts, weights = [], dict(trained.named_parameters())
    for name, before in base.named_parameters():
        if name.split(".")[-2] in names:
            vectors, known = (torch.linalg.svd(weight, full_matrices=False)[0] for weight in (weights[name], before))
            counts.append(((vectors[:, :LARGEST].T @ known).abs().amax(dim=1) < ALIKE).sum().item())
    return float(np.mean(counts))


def load(experiment: str) -> pd.DataFrame:
    """What was measured of an experiment's runs: a row per run, seed and passage."""
    return pd.read_csv(REFERENCE / experiment / "forgetting.csv")


def table(experiment: str) -> pd.DataFrame:
    """A row per run: means over passages and seeds, with 95 % intervals.

    `forgotten` is the loss minus the untrained model's.
    """
    measured = load(experiment)
    intruders = pd.read_csv(REFERENCE / experiment / "intruders.csv").groupby("run")["intruders"].mean()
    untrained = measured[measured["run"] == "zero-shot"].set_index("passage")["loss"]
    measured = measured.assign(forgotten=measured["loss"] - measured["passage"].map(untrained))
    rows = {}
    for name, some in measured.groupby("run", sort=False):
        rows[name] = {"seeds": some["seed"].nunique()}
        for heading in (*MEASURED, "forgotten"):
            values = some.pivot(index="seed", columns="passage", values=heading).to_numpy()
            rows[name][heading] = report.with_interval(values.mean(), intervals.interval(values))
        rows[name]["intruders"] = f"{intruders[name]:.2f}" if name in intruders else "–"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
