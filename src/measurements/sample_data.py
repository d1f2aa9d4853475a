"""The sample dialogues beside DialogSum and the targets they were written for: `python -m measurements sample-data`.

Words are runs of letters or digits; speaker tags count in summaries only. DialogSum's dialogues are those of 50 to 110
words. ROUGE-1 / 2 / L is F1 without a stemmer. Verbs and names come from patterns, good to a few points.
"""

from itertools import combinations
from pathlib import Path

import datasets
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from dialogue_summarization import data

WORD = r"[A-Za-z0-9]+(?:['’][A-Za-z]+)*"
SENTENCE_END = r"(?<=[.!?])(?<!Mr\.)(?<!Ms\.)(?<!Dr\.)(?<!Mrs\.)\s+"
STOP_WORDS = """a an the and or but so because if then than as of to in on at for with from by about into am is are was
were be been do does did has have had will would can could should may must no not it its he she his her him you me my we
us our they them their i this that these those there here who which what where when how why s t d m ll re ve"""
SUBJECT = r"(?:#Person\d#|(?!(?:The|A|An|It|They|Their|Both|There|In|At|After)\b)(?:(?:Mr|Mrs|Ms|Dr)\. )?[A-Z]\w+)"
VERB = rf"^{SUBJECT}(?: and {SUBJECT})?(?:'s \w+)? (\w+)"
PATTERNS = {  # the summaries in which a pattern is found; its target
    "begins with #Person1#": (r"^#Person1#(?! and #)", "38%"),
    "begins with #Person2#": (r"^#Person2#(?! and #)", "28%"),
    "begins with both": (r"^#Person\d# and #Person\d#", "10%"),
    "both tags": (r"#Person1#.*#Person2#|#Person2#.*#Person1#", "63%"),
    "no tag": (r"^(?!.*#Person)", "10%"),
    "tag, verb, tag": (r"#Person\d# \w+ #Person\d#", "35-40%"),
    "he, she, his, her, him": (r"(?i)\b(?:he|she|his|her|him)\b", "<= 15%"),
    "will": (r"\bwill\b", "13%"),
    "that": (r"\bthat\b", "8%"),
    "negation": (r"(?i)\b(?:no|not|never|nothing|cannot|\w+n't)\b", "12%"),
}


def write(folder: Path, dialogsum: str) -> None:
    """Print the measures of the splits in a folder and of DialogSum, and the near-duplicates within and across them."""
    own, known = data.load_source(str(folder)), data.load_source(dialogsum)
    short = {name: known[name].filter(lambda row: 50 <= len(_words(row["dialogue"])) <= 110) for name in known}
    common = pd.Series(known["train"]["dialogue"]).map(_words).explode().value_counts().index[:3000]
    table = {name: measures(rows, common) for name, rows in own.items()}
    table |= {f"DialogSum {name}": measures(short[name].take(400), common) for name in ("train", "test")}
    cells = pd.DataFrame(table)
    print(cells.map(lambda cell: cell[0]).assign(target=cells.iloc[:, 0].map(lambda cell: cell[1])).to_string())
    print(data.near_duplicates(own).to_string())
    theirs = [text for rows in known.values() for text in rows["dialogue"]]
    for name, rows in own.items():
        share = max(data.ngram_overlap(rows["dialogue"], theirs))
        print(f"{name}: at most {share:.0%} of a dialogue's 8-grams are in one of DialogSum's.")


def measures(rows: datasets.Dataset, common: pd.Index) -> dict[str, tuple[str, str]]:
    """Each measure of a split with its target: dialogues' length and wording, summaries' form, ROUGE of baselines."""
    dialogues, summaries = pd.Series(rows["dialogue"]), pd.Series(rows["summaries"]).explode()
    turns = _spoken(dialogues).str.split("\n").explode()
    lengths, questions = turns.str.count(WORD), turns.str.contains("?", regex=False)
    words = dialogues.map(_words)
    rare = words.explode().isin(common).groupby(level=0).mean().rsub(1) * 100
    sentences = summaries.str.split(SENTENCE_END)
    verbs = sentences.head(128).explode().str.extract(VERB)[0].value_counts(normalize=True)
    openings = dialogues.str.split("\n").str[:2].str.join(" ")
    pairs = [(openings[number], text) for number, text in summaries.items()]
    references = [pair for several in rows["summaries"] for pair in combinations(several, 2)]
    counts = [f"{(sentences.str.len() == count).mean():.0%}" for count in (1, 2, 3)]
    return {
        "words per dialogue": (_spread(words.str.len()), "80 (50 to 110)"),
        "turns": (_spread(lengths.groupby(level=0).size()), "8 to 9 (6 to 14)"),
        "words per turn, median": (f"{lengths.median():.0f}", "8"),
        "longest turn, words": (_spread(lengths.groupby(level=0).max()), "at most 25"),
        "turns with a question": (f"{questions.mean():.0%}", "35-40%"),
        "first turn a question": (f"{questions.groupby(level=0).first().mean():.0%}", "60%"),
        "rare words, %": (_spread(rare), "<= 5, at most 10"),
        "words per summary": (_spread(summaries.str.count(WORD)), "16 (10 to 24)"),
        "1 / 2 / 3 sentences": (" / ".join(counts), "55% / 45% / 0%"),
        "content words in the dialogue, %": (_spread(_said(dialogues, summaries)), "70, at least 45"),
        "verbs in 128 summaries": (f"{len(verbs)}", "60 to 80"),
        "commonest verb": (f"{verbs.index[0]} {verbs.iloc[0]:.0%}", "<= 12%"),
        "references with each other": (_rouge(references), ">= .50 / .22 / .42"),
        "first two turns": (_rouge(pairs), ".26 / .06 / .21"),
    } | {name: (f"{summaries.str.contains(found).mean():.0%}", target) for name, (found, target) in PATTERNS.items()}


def _said(dialogues: pd.Series, summaries: pd.Series) -> pd.Series:
    """The percentage of each summary's content words, as stems, that are in its dialogue."""
    stems, shares = DefaultTokenizer(use_stemmer=True).tokenize, []
    for number, summary in _spoken(summaries).items():
        content = set(stems(summary)) - set(STOP_WORDS.split())
        shares.append(100 * len(content & set(stems(dialogues[number]))) / len(content))
    return pd.Series(shares)


def _rouge(pairs: list[tuple[str, str]]) -> str:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = pd.DataFrame([scorer.score(reference, text) for text, reference in pairs])
    return " / ".join(f"{score:.2f}" for score in scores.map(lambda score: score.fmeasure).mean())


def _spoken(texts: pd.Series) -> pd.Series:
    return texts.str.replace(r"#Person\d+#:?", "", regex=True)


def _words(dialogue: str) -> list[str]:
    return _spoken(pd.Series([dialogue])).str.lower().str.findall(WORD)[0]


def _spread(values: pd.Series) -> str:
    low, high = values.quantile([0.05, 0.95])
    return f"{values.mean():.3g} ({low:.3g} to {high:.3g}; {values.min():.3g} to {values.max():.3g})"
