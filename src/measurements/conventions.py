"""One system's summaries under the ROUGE conventions that people report: ROUGE-1 of 0.475 and 0.559 are one's."""

import argparse
from functools import partial

import datasets
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer

from dialogue_summarization import errors, report, rouge, runs
from dialogue_summarization.evaluation import systems

from . import tables

Texts = list[str]
References = list[list[str]]


def measure(record: dict[str, object], splits: datasets.DatasetDict, options: argparse.Namespace) -> None:
    """ROUGE of BART-large (a published system), `full` and `lora-balanced` (seed 0) by each of `CONVENTIONS`.

    `--published` names the folder with BART-large's summaries. py-rouge is no dependency of the project:
    `uv run --with py-rouge --with "setuptools<81" python -m measurements conventions`.
    """
    if not options.published:
        raise errors.ConfigurationError("Name the folder with the published predictions: --published DIR.")
    test = splits["test"]
    bart = systems.published_scores(test).loc["BART-large, fine-tuned"]
    texts = {"BART-large": systems.load_predictions(options.published / bart["file"], bart["column"], test)}
    for run in runs.collect("smollm2-dialogsum"):
        if run.name in ("full", "lora-balanced") and run.config.seed == 0:
            texts[run.name] = report.predictions(run, test)
    references, record["scores"] = list(test["summaries"]), {}
    for convention, score in CONVENTIONS.items():
        scores = {name: score(own, references)[tables.MEASURES] for name, own in texts.items()}
        record["scores"][convention] = pd.DataFrame(scores).round(4).to_dict()


def of_pairs(combine: str, texts: Texts, references: References) -> pd.Series:
    """By this project's scorer, the references of a dialogue combined: their mean, the best of each type, the first."""
    return rouge.score_pairs(texts, references).groupby(level="dialogue").agg(combine).mean()


def without_stemmer(texts: Texts, references: References) -> pd.Series:
    """The mean over references, with words as they are written."""
    scorer = RougeScorer(tables.MEASURES)
    rows = [
        pd.DataFrame([{name: f1.fmeasure for name, f1 in scorer.score(one, text).items()} for one in several]).mean()
        for text, several in zip(texts, references, strict=True)
    ]
    return pd.DataFrame(rows).mean()


def by_summary_lines(texts: Texts, references: References) -> pd.Series:
    """ROUGE-L as "summary level" L, with each sentence on a line, as papers on news report it."""
    return rouge.score_dialogues(texts, references).mean().drop("rougeL").rename({"rougeLsum": "rougeL"})


def by_py_rouge(texts: Texts, references: References) -> pd.Series:
    """py-rouge, mean over references, with the settings of its README: the weight of 1.2 raises L alone."""
    from nltk import NLTKWordTokenizer
    from rouge import Rouge

    # Its own call fetches a sentence splitter, which has nothing to split: punctuation is gone by then.
    Rouge.tokenize_text = staticmethod(lambda text, language="english": NLTKWordTokenizer().tokenize(text))
    scorer = Rouge(["rouge-n", "rouge-l"], max_n=2, limit_length=False, apply_avg=False, weight_factor=1.2)
    rows = [
        pd.DataFrame([scorer.get_scores([text], [one]) for one in several]).map(lambda found: found[0]["f"][0]).mean()
        for text, several in zip(texts, references, strict=True)
    ]
    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
    return pd.DataFrame(rows).mean().rename(names)


def table(records: dict[str, dict]) -> pd.DataFrame:
    """A row per convention, and for each system ROUGE-1, -2 and -L; `records` are as `tables.load` gives them."""
    scores = pd.DataFrame(records["conventions"]["scores"]).T.rename_axis("convention")
    names = {name: tables.label(name) for name in ("full", "lora-balanced")}
    return scores.map(lambda own: " / ".join(f"{own[name]:.3f}" for name in tables.MEASURES)).rename(columns=names)


CONVENTIONS = {  # of texts and the references of each: a series with at least `tables.MEASURES`
    "mean of three references (this project)": partial(of_pairs, "mean"),
    "best of three references": partial(of_pairs, "max"),
    "first reference only": partial(of_pairs, "first"),
    "mean of three, without stemmer": without_stemmer,
    "mean of three, Lsum in place of L": by_summary_lines,
    "mean of three, py-rouge": by_py_rouge,
}
