"""Bad input, drawn by hypothesis: a result or one of our own errors, and never another."""

import csv
import io
import json

import pytest
from helpers import tiny_experiment, tiny_rows, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialogue_summarization import data, models, report, rouge, runs, study
from dialogue_summarization.commands import cli
from dialogue_summarization.errors import DataError
from dialogue_summarization.evaluation import systems
from dialogue_summarization.experiments import METHODS

FILES, DIALOGUES, FILES_OF_FIVE = 900, 400, 150  # 2,050 files, dialogues and summaries
quick = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}

ODD = [
    *("'", "'=", "-", "+", "''@"),
    *(
        "=1+1",
        "@SUM(A1)",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "a/b\\c",
        "\u202eabc\u202c",
        "שלום",
        "مرحبا",
    ),
    *(
        "\x00",
        "\x07\x1b[31m",
        "\ufeff",
        "\ud800",
        "\u2028",
        "\x85",
        "\r",
        "🙂" * 3,
        "é",
        "",
        " ",
        "\t",
        "#Person1#:",
        '"',
    ),
]
texts = st.lists(st.sampled_from(ODD) | st.text(st.characters(), max_size=8), max_size=5).map("".join)
simple = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = simple | st.lists(simple, max_size=2)
columns = st.sampled_from(["id", "dialogue", "summary", "topic", "other", ""])
good = st.fixed_dictionaries({"id": texts, "dialogue": texts, "summary": texts | st.lists(texts, max_size=3)})
rows = st.lists(good | st.dictionaries(columns, values, max_size=5), min_size=1, max_size=4)
encodings = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-7"])


def as_jsonl(drawn, encoding):
    return "\n".join(json.dumps(row) for row in drawn).encode(encoding, "replace")


def as_csv(drawn, encoding):
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "dialogue", "summary"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(drawn)
    return file.getvalue().encode(encoding, "replace")


def damaged(content, place, byte):
    place %= len(content) + 1
    return content[:place] + byte + content[place + 1 :]


whole = st.builds(as_jsonl, rows, encodings) | st.builds(as_csv, rows, encodings)
contents = whole | st.binary(max_size=40) | st.builds(damaged, whole, st.integers(0, 400), st.binary(max_size=1))


@settings(max_examples=FILES, **quick)
@given(content=contents, suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_file_is_read_or_refused(tmp_path_factory, content, suffix):
    folder = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    folder.mkdir(exist_ok=True)
    file = folder / f"train{suffix}"
    file.write_bytes(content)
    try:
        train = data.group_references(data.read_rows(file), file)
    except DataError as error:
        assert str(file) in str(error)
        return
    assert len(set(train["id"])) == len(set(train["dialogue"])) == len(train) > 0
    assert all(dialogue.strip() for dialogue in train["dialogue"]) and all(map(all, train["summaries"]))
    data.fingerprint(dict.fromkeys(data.SPLITS, train))


@pytest.fixture(scope="module")
def tiny_families(tiny_models, tiny_data):
    return [models.load_model(tiny_experiment(tiny_models[name], tiny_data)) for name in ("t5", "llama")]


@settings(max_examples=DIALOGUES, **quick)
@given(dialogue=texts.filter(lambda text: "\ud800" not in text), repeats=st.sampled_from([1, 1, 1, 40]))
def test_any_dialogue_is_encoded_within_the_limit(tiny_families, dialogue, repeats):
    dialogue = (dialogue * repeats).encode("utf-8", "ignore").decode()
    for bundle in tiny_families:
        row = bundle.family.encode(dialogue, "A summary.")
        assert 0 < len(row["input_ids"]) <= 256 and (not row["truncated"] or repeats > 1)
        bundle.family.collate([row, bundle.family.encode("#Person1#: Hello.", "Hello.")])


@pytest.fixture(scope="module")
def finished(made_once, tmp_path_factory):
    """The folder of a record."""
    return made_once("llama", "zero-shot", tmp_path_factory.mktemp("outputs")).folder


@settings(max_examples=FILES_OF_FIVE, **quick)
@given(summaries=st.lists(texts, min_size=5, max_size=5))
def test_any_summaries_are_recorded_and_scored(finished, tiny_data, summaries):
    summaries = [text.encode("utf-8", "ignore").decode().strip() for text in summaries]  # as a tokenizer's text is
    file, test = finished / "predictions.csv", split_of(tiny_data)
    runs.write_predictions(file, test["id"], summaries)
    assert runs.read(finished).predictions["prediction"].tolist() == summaries
    cells = [row["prediction"] for row in data.read_rows(file)]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert [text for text in cells if text[:1] != "'"] == [text for text in summaries if text[:1] not in tuple("'=+-@")]
    try:
        matched = systems.load_predictions(file, "prediction", test)
    except DataError as error:
        assert "" in summaries and "empty" in str(error)
        return
    scores = rouge.score_dialogues(matched, test["summaries"]).to_numpy()
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_dialogue_of_1_mb_loses_its_end(tiny_families):
    row = tiny_families[1].family.encode("word " * 200_000)
    assert row["truncated"] and len(row["input_ids"]) <= 256


def split_of(folder, cache={}):  # noqa: B006
    return cache.setdefault(folder, data.load_source(str(folder))["test"])


def test_odd_dialogues_go_through_a_whole_run(tiny_models, tmp_path, capsys):
    odd = [
        "<script>alert(1)</script> & <b>bold</b>",
        "=HYPERLINK(\"http://x\",\"y\")",
        "\u202eשלום\u202c: مرحبا بك",
        "no speaker tags at all, only one long line",
        "#Person1#: \x07\x1b[31mred\x1b[0m\x0b\x0c bell",
        "word " * 20_000,
    ]  # fmt: skip
    ids = ["../a/0\\b", "NA", "null", "007", "1e5", "=1+1"]
    lines = [
        {"id": name, "dialogue": text, "summary": f"<i>It</i> is {name}."} for name, text in zip(ids, odd, strict=True)
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    for split in data.SPLITS:
        write_jsonl(folder / f"{split}.jsonl", lines if split == "test" else tiny_rows(8))
    run = study.run(tiny_experiment(tiny_models["llama"], folder), METHODS["full"], outputs=tmp_path / "outputs")
    test = data.load_source(str(folder))["test"]
    read = runs.read(run.folder)
    assert run.predictions["id"].tolist() == read.predictions["id"].tolist() == read.scores.index.tolist() == ids
    assert {path.name for path in tmp_path.iterdir()} == {"data", "outputs"}
    shown = report.side_by_side([run], test, report.best_median_worst(run), "rougeL").T
    shown = report.texts_as_html(shown)._repr_html_() + test.to_pandas()._repr_html_()
    assert "<script>" not in shown and "<b>bold" not in shown
    assert len(systems.baselines(test.select(range(5)))) == 5
    for content, said in ((b"\xff\xfeH\x00i\x00", "not UTF-8"), (b" \n", "empty")):
        (tmp_path / "dialogue.txt").write_bytes(content)
        assert cli.main(["summarize", str(run.folder), str(tmp_path / "dialogue.txt")]) == 1
        assert said in capsys.readouterr().err
    for file, said in ((tmp_path / "nothing.txt", "No such file"), (tmp_path, "cannot be read")):
        assert cli.main(["summarize", str(run.folder), str(file)]) == 1
        assert said in capsys.readouterr().err
