"""What fine-tuning forgets: how well a model still predicts text that is no dialogue, beside the untrained one.

`python -m measurements forgetting FILE RUN ...`, with folders of runs that have weights. passages.csv holds 286
passages in the public domain: of Alice in Wonderland, The Devil's Dictionary, The Jargon File and Paradise Lost, and of
the United States' Constitution and Declaration of Independence; passages with quotation marks were left out.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from dialogue_summarization import disk, hardware, models, runs, study
from dialogue_summarization.errors import ConfigurationError

PASSAGES = Path(__file__).with_name("passages.csv")
MEASURED = ["loss", "agreement", "divergence"]  # per token of a passage


def write(target: str, *folders: str) -> None:
    """Measure the base model and the runs on every passage; one row per run and passage goes to `target`, a CSV file.

    Raises `ConfigurationError` where a run has no weights, or its model does not continue texts.
    """
    passages, wanted = list(pd.read_csv(PASSAGES)["text"]), [runs.read(Path(folder)) for folder in folders]
    base = models.load_model(wanted[0].experiment, device=hardware.device())
    rows = [_rows("zero-shot", 0, measure(base, base, passages))]
    rows += [_rows(run.name, run.config.seed, measure(study.load_run(run), base, passages)) for run in wanted]
    disk.write_csv(Path(target), pd.concat(rows).round(5))


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


def _rows(name: str, seed: int, measured: pd.DataFrame) -> pd.DataFrame:
    return measured.assign(run=name, seed=seed, passage=range(len(measured)))
