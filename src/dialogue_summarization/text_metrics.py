"""What ROUGE leaves out, without a network: chrF and BLEU, lengths, novelty, repetition, a proxy of faithfulness.

All but chrF and BLEU need no reference and are one value a dialogue; those two are of the whole set, as they are
defined (Popović 2015; Papineni et al. 2002), by sacrebleu. BERTScore is in `bertscore`, with the extra of that name.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from sacrebleu.metrics import BLEU, CHRF

from .significance import mean_with_interval, resampled_sums

WORD = re.compile(r"[\w']+")
# Without one and two, which are mostly no numbers of the dialogue: "one of them", "two people discuss".
_SMALL = (
    "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: str(number) for number, word in enumerate(_SMALL.split(), 3)}
NUMBERS |= {word: str(10 * number) for number, word in enumerate(_TENS.split(), 3)}
SPEAKER = re.compile(r"#?\s?\bPerson[ _]?(\d+)\b\s?#?", re.IGNORECASE)
COLUMNS = {  # what each column is, for tables
    "words": "words",
    "length ratio": "words / words of the references",
    "compression": "words of the dialogue / words",
    "new 1-grams": "words that the dialogue does not have",
    "new 2-grams": "word pairs that the dialogue does not have",
    "repetition": "3-grams that stood before in the summary",
    "faithful": "speakers, names and numbers that the dialogue has",
}


def words(text: str) -> list[str]:
    """Lower-case words, marks left out: `#Person1#'s` is `person1's`."""
    return WORD.findall(text.lower())


def _grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def new_grams(summary: Sequence[str], dialogue: Sequence[str], n: int) -> float:
    """The share of the summary's n-grams that the dialogue does not have (See et al. 2017); NaN where it has none."""
    grams, known = _grams(summary, n), set(_grams(dialogue, n))
    return sum(gram not in known for gram in grams) / len(grams) if grams else float("nan")


def repetition(tokens: Sequence[str], n: int = 3) -> float:
    """The share of n-grams that stood before in the same text; NaN where it is too short to have one."""
    grams = _grams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else float("nan")


def claims(text: str, common: frozenset[str] = frozenset()) -> set[str]:
    """Speakers (`#Person1#`), names and numbers of a text, in one spelling: what it says about whom and how many.

    A name is a capitalized word, one that begins a sentence only if it is not among `common` in lower case. Numbers are
    digits, or words from three to ninety.
    """
    found = {f"person{number}" for number in SPEAKER.findall(text)}
    rest = SPEAKER.sub(",", text)
    found |= {re.sub(r"[,:.](?!\d)", "", number) for number in re.findall(r"\d[\d,.:]*", rest)}
    found |= {NUMBERS[word] for word in words(rest) if word in NUMBERS}
    for match in re.finditer(r"[A-Z][\w]*", rest):
        word, before = match[0].lower(), rest[: match.start()].rstrip(" \"'(")
        if match.start() and (rest[match.start() - 1].isalnum() or rest[match.start() - 1] == "'"):
            continue  # inside a word, as in McDonald
        begins = not before or before[-1] in ".!?:\n"
        if word in NUMBERS or word == "i" or (begins and (word in common or len(word) == 1)):
            continue
        found.add(word)
    return found


def faithfulness(summary: str, dialogue: str, common: frozenset[str] = frozenset()) -> float:
    """The share of the summary's speakers, names and numbers that occur in the dialogue; NaN where it has none.

    A proxy: it sees a made-up name or number, but neither who did what nor whether it is true.
    """
    found = claims(summary, common)
    there = {re.sub(r"\W", "", word) for word in words(dialogue)} | {
        word.removesuffix("'s") for word in words(dialogue)
    }
    there |= claims(dialogue)
    return sum(claim in there for claim in found) / len(found) if found else float("nan")


def lower_case_words(texts: Sequence[str]) -> frozenset[str]:
    """The words that some text writes in lower case, hence no names."""
    return frozenset(word for text in texts for word in re.findall(r"(?<![\w'])[a-z][\w]*", text))


def statistics(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """A row a dialogue, the columns of `COLUMNS`; NaN where a value is not defined, as of an empty summary."""
    common, tokens = _of_dialogues(tuple(dialogues))
    rows = []
    for text, dialogue, heard, several in zip(predictions, dialogues, tokens, references, strict=True):
        summary = words(text)
        expected = np.mean([len(words(reference)) for reference in several])
        rows.append(
            (
                len(summary),
                len(summary) / expected if expected else float("nan"),
                len(heard) / len(summary) if summary else float("nan"),
                new_grams(summary, heard, 1),
                new_grams(summary, heard, 2),
                repetition(summary),
                faithfulness(text, dialogue, common),
            )
        )
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=float)


@lru_cache(maxsize=4)
def _of_dialogues(dialogues: tuple[str, ...]) -> tuple[frozenset[str], list[list[str]]]:
    return lower_case_words(dialogues), [words(dialogue) for dialogue in dialogues]


def corpus(
    predictions: Sequence[str], references: Sequence[Sequence[str]], resamples: int = 1000
) -> dict[str, tuple[float, tuple[float, float], str]]:
    """BLEU and chrF of all summaries together (0 to 100), with 95 % interval and sacrebleu's signature.

    The interval is of the same draws of dialogues as every other here, over sacrebleu's counts of each dialogue.
    """
    return dict(_corpus(tuple(predictions), tuple(map(tuple, references)), resamples))


@lru_cache(maxsize=16)
def _corpus(
    predictions: tuple[str, ...], references: tuple[tuple[str, ...], ...], resamples: int
) -> dict[str, tuple[float, tuple[float, float], str]]:
    """Remembered, since a table and its signature are of the same counts."""
    most = max(map(len, references))
    streams = [[several[place] if place < len(several) else None for several in references] for place in range(most)]
    found = {}
    for name, metric in (("chrF", CHRF()), ("BLEU", BLEU())):
        # Its own bootstrap fails where every resample scores 0 (empty summaries).
        counts = np.array(metric._extract_corpus_statistics(predictions, streams))
        whole, *drawn = (
            float(metric._compute_score_from_stats(list(row)).score)
            for row in (counts.sum(axis=0), *resampled_sums(counts, resamples))
        )
        bounds = tuple(map(float, np.percentile(drawn, [2.5, 97.5]))) if drawn else (whole, whole)
        found[name] = (whole, bounds, str(metric.get_signature()))
    return found


def describe(
    predictions: Sequence[str], dialogues: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Each measure's value and 95 % interval: chrF, BLEU, and the means of `statistics` over dialogues."""
    found = {name: entry[:2] for name, entry in corpus(predictions, references).items()}
    table = statistics(predictions, dialogues, references)
    return found | {name: mean_with_interval(table[name]) for name in COLUMNS}


def signature(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """How chrF and BLEU were computed, as sacrebleu says it."""
    return "; ".join(f"{name} {entry[2]}" for name, entry in corpus(predictions, references).items())


def most_repeated(tokens: Sequence[str], n: int = 3) -> int:
    """How often the most frequent n-gram stands in a text."""
    return max(Counter(_grams(tokens, n)).values(), default=0)
