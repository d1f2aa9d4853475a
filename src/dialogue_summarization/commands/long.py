"""Dialogues longer than a model takes: split into parts that fit, and the parts' summaries summarized (`--long split`).

No scored run does it, since it is another way to summarize than what was trained.
"""

from .. import generation
from ..experiments import Generation
from ..models import ModelBundle
from ..texts import unify_line_ends
from ..tokenization import Family


def summarize_long(bundle: ModelBundle, dialogue: str, settings: Generation, how: str) -> tuple[str, int]:
    """A summary, and of how many parts of the dialogue it is: 1 where it fits, or `how` is "cut"."""
    dialogue = unify_line_ends(dialogue)
    parts = first = split(bundle.family, dialogue) if how == "split" else [dialogue]
    while len(parts) > 1:
        text = "\n".join(generation.summarize(bundle, parts, settings, progress=False))
        is_shorter = len(text) < sum(map(len, parts))  # or it would never fit
        parts = split(bundle.family, text) if is_shorter else [text]
    return generation.summarize(bundle, parts, settings, progress=False)[0], len(first)


def split(family: Family, text: str) -> list[str]:
    """The text in parts that fit, halved between turns; a single turn between words, a single word anywhere."""
    if not family.encode(text)["truncated"]:
        return [text]
    glue = next((glue for glue in ("\n", " ") if glue in text), "")
    units = text.split(glue) if glue else list(text)
    middle = len(units) // 2
    halves = (glue.join(units[:middle]), glue.join(units[middle:]))
    return [part for half in halves if half.strip() for part in split(family, half)]
