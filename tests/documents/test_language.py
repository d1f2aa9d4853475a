"""Plain language: short sentences, few numbers, the field's words, and a definition for each column head.

What a check can keep of it. The aim is 25 words and two numbers per sentence; here are the limits.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from dialogue_summarization import data, runs

WORDS, NUMBERS = 30, 4
DOCUMENTS = [
    "README.md",
    "GPU_OPTIMIZATION_GUIDE.md",
    "data/README.md",
    "notebooks/README.md",
    *(path.relative_to(data.ROOT).as_posix() for path in sorted((data.ROOT / "docs").glob("*.md"))),
    *(path.relative_to(data.ROOT).as_posix() for path in sorted((runs.OUTPUTS / "reference").glob("*/results.md"))),
]
NOTEBOOKS = [path.relative_to(data.ROOT).as_posix() for path in sorted((data.ROOT / "notebooks").glob("*.ipynb"))]
SOURCES = sorted((data.ROOT / "src" / "dialogue_summarization").rglob("*.py"))
BANNED = {  # what is not idiomatic, or this project's own word for something: what to write instead
    r"\b(ms|samples|tokens|pairs|nats|seconds|s) an? (step|second|token|dialogue|pair|summary)\b": "per",
    r"\bt(old|ell)\w* (them |it )?apart\b|\bcannot be told\b": "not significantly different",
    r"\bstands? in train\b": "near-duplicate",
    r"\b(goes|go|went|going) on\b": "resume, continue",
    r"\ball the same\b": "nevertheless",
    r"\bsays? so\b|\bsaid so\b": "prints a message",
    r"\bis to be (set|chosen|done)\b": "you need to",
    r"\bby heart\b": "overfits",
    r"\breckon": "estimate",
    r"\b(half )?a hundredth\b": "0.01",
    r"\bthe manner of\b": "style",
    r"\bthe edge of what\b|\bapart, since\b": "a plain sentence",
    r"(?<!model )(?<!s )\bcards?\b": "GPU",
    r"\bMiB\b|(?<!\d )\bGiB\b(?! \(|,)": "GB, or MB",
    r"\bwithheld\b": "not shown",
    r"\bminds that\b": "corrects for",
}
# Sentences of their own right: a licence, the definition of a unit, a line of an output.
EXCEPTIONS = ("GB, GiB", "42 GiB", "pay by card", "CUDA card")
SHAPES = re.compile(r"LoRA r\d+|, full$")  # a model and a method as a column
# Column heads that need no definition.
PLAIN_HEADS = """
by|summary|method|run|runs|notebook|GPU|time|memory|epochs|seed|seeds|model|device|problem|what to do|you have|what
what you learn|what it teaches|what is trained|setting|dialogues|rows|file|term|meaning|the lab|why it matters|here
session|notebooks|part|points|full marks for|what to discuss|time to run|parameter|column|content|watch out|claim
compared|GPUs|system|kind|pair|training dialogues|start with|experiment|data|command|summaries per dialogue|alpha
trainings|learning rate|ROUGE-1|ROUGE-2|ROUGE-L|ROUGE-Lsum|steps alone (s)|right|peak memory of training
"""


def prose(text):
    """The running text of Markdown, without code, tables, headings, marks and addresses: a paragraph or item each."""
    text = re.sub(
        r"^```.*?^```|<!--.*?-->|^\|.*?$|^#+ .*?$|^!\[.*?\]\(.*?\)$|</?\w+[^>]*>", "", text, flags=re.S | re.M
    )
    text = re.sub(r"!?\[(.*?)\]\(\S*?\)", r"\1", text, flags=re.S)
    text = re.sub(r"`[^`]*`", "code", text)
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:[-*>]|\d+\.)\s)", text)
    lines = [re.sub(r"\s+", " ", re.sub(r"^\s*(?:[-*>]|\d+\.)\s", "", part)).strip() for part in parts]
    return [line for line in lines if line and "#Person1#" not in line]


def sentences(text):
    return [
        one
        for line in prose(text)
        for one in re.split(r"(?<=[.!?])[*\")]*\s+(?=[\"(\[]*(?:[A-Z0-9c]|\*))", line)
        if one
    ]


def faults(sentence):
    """What is wrong with a sentence."""
    if any(known in sentence for known in EXCEPTIONS):
        return []
    words = [word for word in sentence.split() if re.search(r"\w", word)]
    found = [f"{len(words)} words"] if len(words) > WORDS else []
    numbers = re.findall(r"(?<![\w.#/-])[−+-]?\d[\d,.]*(?:e-?\d+)?(?![\w-])", sentence)
    found += [f"{len(numbers)} numbers"] if len(numbers) > NUMBERS else []
    return found + [f"write {better!r}" for pattern, better in BANNED.items() if re.search(pattern, sentence)]


def check(text):
    return {sentence: found for sentence in sentences(text) if (found := faults(sentence))}


def undefined_heads(text, glossary=""):
    """Column heads of a document's tables that are neither plain nor in italics or bold somewhere in it."""
    tables = re.findall(r"^\|(.*)\|\n\|[-:| ]+\|$", text, re.MULTILINE)
    heads = {head.strip(" *") for table in tables for head in table.split(" | ")}
    plain = {"", *re.split(r"[|\n]", PLAIN_HEADS)}
    explained = " ".join(re.findall(r"\*{1,2}([^*|]+?)\*{1,2}", text + glossary)).lower()
    return sorted(
        head for head in heads if head not in plain and head.lower() not in explained and not SHAPES.search(head)
    )


def markdown(path):
    return "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_plain(name):
    assert check((data.ROOT / name).read_text("utf-8")) == {}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_plain(name):
    assert check(markdown(data.ROOT / name)) == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_column_heads_are_defined(name):
    glossary = (data.ROOT / "docs" / "glossary.md").read_text("utf-8")
    assert undefined_heads((data.ROOT / name).read_text("utf-8"), glossary) == []


def texts_of(path: Path):
    """What a module says to a user: the messages of its errors, and in `commands` every text."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]:
        if ast.get_docstring(node):  # for who reads the code
            node.body = node.body[1:]
    roots = (
        [tree] if path.parent.name == "commands" else [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    )
    inner = {
        id(part) for root in roots for node in ast.walk(root) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in (node for root in roots for node in ast.walk(root)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "code" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield re.sub(r"^  .*$", "", node.value, flags=re.MULTILINE)  # without the commands that help lists


def test_the_program_speaks_plainly():
    texts = [text for path in SOURCES for text in texts_of(path) if len(text.split()) > 3]
    assert len(texts) > 100
    assert {sentence: found for text in texts for sentence, found in check(text).items()} == {}


def test_there_is_something_to_check():
    counted = {name: len(sentences((data.ROOT / name).read_text("utf-8"))) for name in DOCUMENTS}
    assert len(counted) >= 15 and counted["README.md"] > 40 and counted["GPU_OPTIMIZATION_GUIDE.md"] > 60
    assert len(NOTEBOOKS) >= 6 and all(len(sentences(markdown(data.ROOT / name))) > 10 for name in NOTEBOOKS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Its " + "very " * 29 + "long.", ["31 words"]),
        ("One two three. " * 20, []),
        ("- " + "an item of five words\n- " * 20, []),
        ("Scores of 0.1, 0.2, 0.3, 0.4 and 0.5.", ["5 numbers"]),
        ("An H200 with SmolLM2-135M has ROUGE-1 0.44 in `1 2 3 4 5`.", []),
        ("It takes 32 ms a step.", ["write 'per'"]),
        ("The two cannot be told apart.", ["write 'not significantly different'"]),
        ("Close the card.", ["write 'GPU'"]),
        ("A model card, and 5 GB.", []),
        ("| an H100 card | 3 MiB |\n\n```\nms a step\n```", []),
    ],
)
def test_the_check_finds_what_is_wrong(text, found):
    assert [fault for faults_of in check(text).values() for fault in faults_of] == found


def test_a_head_without_a_definition_is_found():
    table = "| run | way to humans |\n| --- | --- |\n| a | 1 |\n"
    assert undefined_heads(table) == ["way to humans"]
    assert undefined_heads(f"*way to humans*: how far.\n\n{table}") == []
