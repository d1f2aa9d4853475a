"""Small plain changes that make a reference summary wrong, for the likelihood test after FacEval (arXiv 2210.11777).

Each takes a summary and its dialogue, and returns the changed summary, or None where there is nothing to change. They
are deterministic. The result may be clumsy English; it is wrong about the dialogue, which is what counts.
"""

import re
from collections.abc import Callable

from .text_metrics import NUMBERS

_AUXILIARY = r"is|are|was|were|will|would|can|could|should|must|may|might"
_WITHOUT_NOT = {"can't": "can", "won't": "will", "shan't": "shall"}
_BASE = {"has": "have", "is": "be", "does": "do", "goes": "go"}


def swap_speakers(summary: str, dialogue: str) -> str | None:
    """Two speakers change places: the first two that the summary names, or the one it names and another."""
    speakers = list(dict.fromkeys(re.findall(r"^([^:\n]{1,30}):", dialogue, re.MULTILINE)))
    named = [name for name in speakers if re.search(_word(name), summary)]
    named.sort(key=lambda name: re.search(_word(name), summary).start())
    others = [name for name in speakers if name not in named]
    if not named or len(named) + len(others) < 2:
        return None
    one, other = (named + others)[:2]
    swapped = {one: other, other: one}
    return re.sub(f"{_word(one)}|{_word(other)}", lambda match: swapped[match[0]], summary)


def _word(name: str) -> str:
    return rf"(?<!\w){re.escape(name)}(?!\w)"


def change_number(summary: str, dialogue: str) -> str | None:
    """The first number becomes the next one: 9 is 10, eleven is twelve. One and two are no numbers here."""
    words = sorted(NUMBERS, key=lambda word: int(NUMBERS[word]))
    match = re.search(rf"(?<![\w#])(\d+|{'|'.join(words)})(?![\w#])", summary, re.IGNORECASE)
    if match is None:
        return None
    found = match[0]
    if found.isdigit():
        changed = str(int(found) + 1).zfill(len(found))
    else:
        place = words.index(found.lower())
        changed = words[place + 1 if place + 1 < len(words) else place - 1]
        changed = changed.capitalize() if found[0].isupper() else changed
    return summary[: match.start()] + changed + summary[match.end() :]


def toggle_negation(summary: str, dialogue: str) -> str | None:
    """The first negation goes; where there is none, the first verb that is easily found gets one."""
    if match := re.search(r"\b(\w+n't)\b", summary):
        whole = _WITHOUT_NOT.get(match[0].lower(), match[0][:-3])
        return summary[: match.start()] + whole + summary[match.end() :]
    if match := re.search(r" (not|never)\b", summary):
        return summary[: match.start()] + summary[match.end() :]
    if match := re.search(rf"\b({_AUXILIARY})\b", summary):
        return f"{summary[: match.end()]} not{summary[match.end() :]}"
    # The third person of the present, behind a speaker or a name: "Ann asks" is "Ann doesn't ask".
    if match := re.search(r"(?:#\w+#|\b[A-Z]\w+) ([a-z]{2,}s)\b", summary):
        return f"{summary[: match.start(1)]}doesn't {_base(match[1])}{summary[match.end() :]}"
    return None


def _base(verb: str) -> str:
    """The infinitive of a third person: tries, watches, asks."""
    if verb in _BASE:
        return _BASE[verb]
    if verb.endswith("ies") and len(verb) > 4:
        return f"{verb[:-3]}y"
    return verb[:-2] if re.search(r"(sh|ch|ss|x|zz)es$", verb) else verb[:-1]


KINDS: dict[str, Callable[[str, str], str | None]] = {
    "speakers swapped": swap_speakers,
    "number changed": change_number,
    "negation toggled": toggle_negation,
}
OTHER = "of another dialogue"
