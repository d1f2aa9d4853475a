"""Texts of any script, from any system: one form of letters and line ends, and where words begin and end."""

import re
import unicodedata
from collections.abc import Iterable

STOPS = "\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4\u1362\u104b\u17d4"  # end a sentence, with or without a space behind
_LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")  # joiners, directions, variants of emoji
# Thai and Lao, Burmese, Khmer, kana and Han: no spaces between words.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff])"
)


def unified(text: str) -> str:
    r"""The text `composed`, with `\n` for every line end: of Windows, and all else that `str.splitlines` splits at."""
    return composed(_LINE_END.sub("\n", text))


def composed(text: str) -> str:
    """The text in Unicode's normal form C: a letter and its accent are one character."""
    return unicodedata.normalize("NFC", text)


def has_other_letters(texts: Iterable[str]) -> bool:
    """Whether any text has a letter beyond a to z, or a digit beyond 0 to 9."""
    others = (text for text in texts if not text.isascii())
    return any(letter.isalnum() and not letter.isascii() for text in others for letter in composed(text))


def spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none between words."""
    return _UNSPACED.sub(r" \1 ", text)


def words(text: str, within: str = "") -> list[str]:
    """Lower-case runs of letters with their marks, digits and `within`; without spaces, as in Thai, characters."""
    text = composed(text).lower()
    if text.isascii():
        return re.findall(f"[a-z0-9{within}]+", text)
    text = _INVISIBLE.sub("", text)
    kept = (c if c.isalnum() or c in within or unicodedata.category(c) in ("Mn", "Mc") else " " for c in text)
    return spaced("".join(kept)).split()
