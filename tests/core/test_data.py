"""Data from files: what is read, what is refused and with which words, what is counted."""

import csv
import json
import re
import shutil
import unicodedata
from dataclasses import replace

import datasets
import pandas as pd
import pytest
from helpers import SHARED, tiny_experiment, tiny_rows, write_jsonl

from dialogue_summarization import data, experiments, hub
from dialogue_summarization.errors import ConfigurationError, DataError

HEADER = "id,dialogue,summary\n"
GOOD = '{"id": "a", "dialogue": "Hi.", "summary": "They met."}\n'


def line(**changes):
    return json.dumps({"id": "b", "dialogue": "Ho.", "summary": "They left."} | changes) + "\n"


def folder_with(folder, name, content):
    """A folder whose file `name` has that content, beside two good splits."""
    for split in {"train", "validation", "test"} - {name.lower().partition(".")[0]}:
        write_jsonl(folder / f"{split}.jsonl", tiny_rows(2))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


@pytest.mark.skipif(not (SHARED / "dialogsum").is_dir(), reason="needs shared/dialogsum")
def test_dialogsum_is_whole_and_repeats_as_known(tmp_path):
    splits = data.load_source(str(SHARED / "dialogsum"))
    assert data.fingerprint(splits) == "6ad5301e3fefa20c"  # of all committed records
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12460, "validation": 500, "test": 500}
    assert splits["test"]["id"] == [f"test_{number}" for number in range(500)]
    assert {len(summaries) for summaries in splits["test"]["summaries"]} == {3}
    raw = datasets.load_dataset(str(SHARED / "dialogsum"), cache_dir=str(tmp_path))  # the Hub's way
    assert {s: data.group_references(list(raw[s]), s).to_list() for s in raw} == {
        s: splits[s].to_list() for s in splits
    }
    *first, last = data.near_duplicates(splits).fillna(-1).to_numpy().tolist()
    assert first == [
        ["train", "train", 1093, -1, -1], ["validation", "validation", 2, -1, -1], ["test", "test", 2, -1, -1],
        ["validation", "train", 51, 81, 103], ["test", "train", 1, 3, 9],
    ]  # fmt: skip
    assert last[:3] == ["test", "validation", 7]


def test_the_same_content_is_the_same_data_in_any_form(tiny_data, tmp_path):
    expected = data.load_source(str(tiny_data))
    for form in ("rows", "lists"):
        (tmp_path / form).mkdir()
        for split in data.SPLITS:
            rows = pd.read_json(tiny_data / f"{split}.jsonl", lines=True)
            if form == "rows":
                rows.to_csv(tmp_path / form / f"{split}.csv", index=False)
            else:
                rows["id"] = rows["id"].str.extract(r"(d_\d+)")
                rows = rows.groupby(["id", "dialogue", "topic"], sort=False)["summary"].agg(list).reset_index()
                rows.to_json(tmp_path / form / f"{split}.jsonl", orient="records", lines=True)
        loaded = data.load_source(str(tmp_path / form))
        content = ["id", "dialogue", "summaries", "topic"]
        assert {s: loaded[s].select_columns(content).to_list() for s in loaded} == {
            s: expected[s].select_columns(content).to_list() for s in expected
        }
        assert data.fingerprint(loaded) == data.fingerprint(expected)
    assert expected["test"]["id"] == ["d_20", "d_21", "d_22", "d_23", "d_24"]
    assert expected["test"][0]["summaries"] == [row["summary"] for row in tiny_rows(1, references=3, start=20)]
    changed = expected["test"].map(lambda row: {"summaries": [*row["summaries"][:2], "Other."]})
    assert data.fingerprint({**expected, "test": changed}) != data.fingerprint(expected)


@pytest.mark.parametrize("ids", [["q_1", "q_2", "q_3", "q_4"], ["q_1", "q_2", "q", "r"]])
def test_ids_stay_apart_where_dialogues_repeat(ids):
    rows = [{"id": ids[n], "dialogue": ["Hello.", "Bye."][n // 2], "summary": f"Text {n}."} for n in range(4)]
    table = data.group_references(rows, "rows")
    assert table["summaries"] == [["Text 0.", "Text 1."], ["Text 2.", "Text 3."]]
    assert len(set(table["id"])) == 2


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("train.csv", "id,dialogue\na,Hi.\n", ["row 1", "column 'summary' is missing", "id, dialogue"]),
    ("test.csv", f"{HEADER}a,Hi.,Text\nb,Ho.\n", ["row 2", "'summary'"]),
    ("train.csv", f"{HEADER}a,Hi.,x\nb,  ,x\n", ["row 2", "column 'dialogue'", "empty"]),
    ("validation.csv", f"{HEADER}a,Hi.,\n", ["row 1", "column 'summary'", "empty"]),
    ("test.csv", f"{HEADER}a,Hi.,👍 !\n", ["row 1", "column 'summary'", "no letter or digit"]),
    ("test.csv", f"{HEADER}a,___,x\n", ["row 1", "column 'dialogue'", "no letter or digit"]),
    ("train.jsonl", GOOD + line(summary=["x", "\n"]), ["row 2", "column 'summary'", "empty"]),
    ("train.jsonl", GOOD + line(dialogue=["Hi."]), ["row 2", "column 'dialogue'", "not list"]),
    ("train.jsonl", GOOD + line(summary=["x", 7]), ["row 2", "column 'summary'", "not int"]),
    ("test.jsonl", GOOD + line(summary=[]), ["row 2", "column 'summary'", "list is empty"]),
    ("train.csv", f"{HEADER}a,Hi.,x\nb,Ho.,x\na,Hm.,x\n", ["row 3", "id 'a'", "row 1"]),
    ("train.csv", f"{HEADER}a,Hi.,x\nb,café,x\n".encode("latin-1"), ["line 3", "UTF-8"]),
    ("train.csv", f"{HEADER}a,Hi.,caf\ufffd\n", ["row 1", "column 'summary'", "UTF-8"]),
    ("train.csv", f"{HEADER}a,Hi.,x\nb,Hi, Ann.,x\n", ["row 2", "more fields than the header"]),
    ("train.csv", f'{HEADER}a,Hi.,x\nb,"Ho."x,x\nc,Hm.,x\n', ["line 3", "not CSV"]),
    ("train.jsonl", GOOD + "\n{'id': 1}\n", ["line 3", "not JSON"]),
    ("train.jsonl", GOOD + '["b", "Ho.", "x"]\n', ["line 2", "not a JSON object"]),
    ("train.csv", HEADER, ["no rows"]),
    ("train.csv", "id,dialogue,summary,summary\na,Hi.,x,y\n", ["column 'summary'", "twice"]),
    ("train.csv", "id;dialogue;id\na;Hi.;x\n", ["column 'id'", "twice"]),
    ("train.jsonl", GOOD + '{"id": "b", "dialogue": "x", "dialogue": "y"}\n', ["line 2", "'dialogue'", "twice"]),
    ("test.csv", f'{HEADER}a,Hi.,x\nb,"Ho.,x\nc,Hm.,x\n', ["row 2", "line 3", "column 'dialogue'", "quote"]),
    ("test.csv", f'{HEADER}a,Hi.,x\nb,"A: Ho.\nB: Hm.","x\n', ["row 2", "line 3", "column 'summary'", "quote"]),
    ("test.csv", f'{HEADER}a,"Hi.,x\nb,"Ho.",x\n', ["row 1", "line 2", "column 'dialogue'", "quote"]),
    ("test.csv", f'{HEADER}a,Hi.,x\nb,"Ho.,x\nc,Hm.",x\n', ["row 2", "column 'dialogue'", "another row (c,Hm.)"]),
    ("test.csv", f'{HEADER}7,Hi.,"x\n8,Ho.,x\n9,Hm.,x"\n', ["row 1", "column 'summary'", "another row (8,Ho.,x)"]),
    ("test.csv", 'id;dialogue;summary\nt_1;"Hi.;x\nt_2;Ho.";x\n', ["row 1", "column 'dialogue'", "another row"]),
    ("train.csv", f"{HEADER}a,\"['Ann: Hi', 'Bob: Ho']\",x\n", ["row 1", "column 'dialogue'", "a list"]),
    ("train.csv", f"{HEADER}a,Hi.,\"['x y' 'z']\"\n", ["row 1", "column 'summary'", "a list"]),
    ("train.csv", f'{HEADER}a,Hi.,"[""x"", ""y""]"\n', ["row 1", "column 'summary'", "a list"]),
    ("train.csv", f"{HEADER}a,Hi.,[]\n", ["row 1", "column 'summary'", "a list"]),
    ("train.jsonl", GOOD + line(summary="[{'summary_text': 'x'}]"), ["row 2", "column 'summary'", "a list"]),
    ("train.csv", "id|dialogue|summary\na|Hi.|x\n", ["column 'id' is missing", "id|dialogue|summary"]),
])  # fmt: skip
def test_bad_rows_are_named(tmp_path, name, content, expected):
    with pytest.raises(DataError) as error:
        data.load_source(folder_with(tmp_path, name, content))
    assert [part for part in [str(tmp_path / name), *expected] if part not in str(error.value)] == []


@pytest.mark.parametrize(("source", "expected"), [
    ("./nowhere", ["no folder './nowhere'", "train, validation and test"]),
    ("nobody/no-such-dialogues", ["'nobody/no-such-dialogues'", "Hugging Face Hub", "--dataset", "quickstart"]),
    ("{folder}/none", ["{folder}/none must hold train.csv, .tsv or .jsonl; neither"]),
    ("{folder}", ["{folder} must hold test.csv, .tsv or .jsonl; both"]),
])  # fmt: skip
def test_a_source_that_is_not_there_says_what_to_do(tmp_path, source, expected):
    (tmp_path / "none").mkdir()
    folder_with(tmp_path, "test.csv", f"{HEADER}a,Hi.,x\n")
    folder_with(tmp_path, "test.jsonl", GOOD)
    with pytest.raises(DataError) as error:
        data.load_source(source.replace("{folder}", str(tmp_path)))
    assert [part for part in expected if part.replace("{folder}", str(tmp_path)) not in str(error.value)] == []


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_marks_and_line_ends_of_windows_change_nothing(tmp_path, start, end, suffix):
    text = f"A: Hi,{end}B: Zoë sings."
    rows = f'id,dialogue,summary{end}7,"{text}",They met.{end}8,Ho.,x{end}'
    if suffix == ".jsonl":
        rows = json.dumps({"id": 7, "dialogue": text, "summary": "They met."}, ensure_ascii=False) + end + line(id=8)
    train = data.load_source(folder_with(tmp_path, f"train{suffix}", start + rows.encode()))["train"]
    assert train[0] == {
        "id": "7", "dialogue": "A: Hi,\nB: Zoë sings.", "summaries": ["They met."], "topic": "",
        "row_ids": ["7"], "row_numbers": [1],
    }  # fmt: skip
    assert train["id"] == ["7", "8"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\r\n"])
def test_every_line_end_is_one_line_end_wherever_texts_come_in(tmp_path, end):
    rows = [{"id": "a", "dialogue": f"A: Hi,{end}B: Ho.", "summary": f"They met.{end}They left.{end}"}]
    expected = [("A: Hi,\nB: Ho.", ["They met.\nThey left."])]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False, quoting=csv.QUOTE_ALL)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    for read in (rows, data.read_rows(tmp_path / "rows.csv"), data.read_rows(tmp_path / "rows.jsonl")):
        table = data.group_references(read, "rows")
        assert list(zip(table["dialogue"], table["summaries"], strict=True)) == expected


def test_texts_of_any_script_have_letters_and_a_topic_may_have_none():
    rows = [
        {"id": n, "dialogue": text, "summary": text, "topic": "-"}
        for n, text in enumerate(["好", "สวัสดี", "नमस्ते", "٣", "é!", "5"])
    ]
    table = data.group_references(rows, "rows")
    assert len(table) == 6 and set(table["topic"]) == {""}


def test_decomposed_letters_are_composed_wherever_texts_come_in(tmp_path):
    composed = {"id": "é1", "dialogue": "Zoë: Ça va?\nBjörn: 각하, ồ.", "summary": "Zoë asks Björn."}
    rows = [{key: unicodedata.normalize("NFD", text) for key, text in composed.items()}]
    assert rows[0] != composed
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    for read in (rows, data.read_rows(tmp_path / "rows.csv")):
        [row] = data.group_references(read, "rows")
        assert (row["id"], row["dialogue"], row["summaries"]) == ("é1", composed["dialogue"], [composed["summary"]])


@pytest.mark.parametrize("name", ["TRAIN.CSV", "Train.Tsv", "train.JSONL"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_endings_of_other_programs_are_read(tmp_path, name, delimiter):
    rows = [{"id": "a", "dialogue": "A: Hi; you, there\tnow", "summary": "They met; or so, they say."}]
    content = json.dumps(rows[0]) if "JSON" in name else pd.DataFrame(rows).to_csv(index=False, sep=delimiter)
    train = data.load_source(folder_with(tmp_path, name, content))["train"]
    assert (train["dialogue"][:], train["summaries"][:]) == ([rows[0]["dialogue"]], [[rows[0]["summary"]]])


def test_texts_that_only_look_odd_are_read(tmp_path):
    rows = [
        {"id": 1, "dialogue": "3,000 people,\n2, no,\n4,000 came", "summary": '"Yes," they said.'},
        {"id": 2, "dialogue": "[A] Hi.\n[B] Ho.", "summary": "{x} (['a'])"},
        {"id": 3, "dialogue": "A: it's 5\" long\nB: Well, yes,\nok", "summary": "['a'] and more"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    table = data.group_references(data.read_rows(tmp_path / "rows.csv"), "rows")
    assert table["dialogue"][:] == [row["dialogue"] for row in rows]
    assert table["summaries"][:] == [[row["summary"]] for row in rows]


def test_rows_of_the_source_are_remembered_for_each_summary():
    rows = [{"id": f"t_{n % 2}_{n}", "dialogue": "AB"[n % 2], "summary": f"Text {n}."} for n in range(4)]
    table = data.group_references([*rows, {"id": "x_1", "dialogue": "C", "summary": ["One.", "Two."]}], "rows")
    assert table["id"][:] == ["t_0", "t_1", "x_1"]
    assert table["summaries"][:] == [["Text 0.", "Text 2."], ["Text 1.", "Text 3."], ["One.", "Two."]]
    assert table["row_ids"][:] == [["t_0_0", "t_0_2"], ["t_1_1", "t_1_3"], ["x_1", "x_1"]]
    assert table["row_numbers"][:] == [[1, 3], [2, 4], [5, 5]]


@pytest.mark.parametrize("empty", [None, "", " \n", [], ["", None], "👍 !"])
@pytest.mark.parametrize("column", ["dialogue", "summary"])
def test_empty_rows_of_a_hub_data_set_are_left_out_and_counted(monkeypatch, capsys, column, empty):
    rows = tiny_rows(3)
    rows[1] |= {column: empty}
    monkeypatch.setattr(hub, "go_offline_if_silent", lambda: None)
    monkeypatch.setattr(data.datasets, "load_dataset", lambda source: dict.fromkeys(data.SPLITS, rows))
    splits = data.load_source("nobody/talks")
    assert splits["test"]["id"][:] == ["d_0", "d_2"] and splits["test"]["row_numbers"][:] == [[1], [3]]
    said = "rows without a dialogue or a summary, left out: 1 of 3"
    assert splits["train"].take(1).info.description == said
    assert capsys.readouterr().err.count(said) == 3
    rows[1].pop(column)
    with pytest.raises(DataError, match=f"row 2: column '{column}' is missing"):  # no column is another matter
        data.load_source("nobody/talks")


@pytest.mark.parametrize(("changes", "name", "dialogues"), [
    ({"limit": 4}, "quickstart-limit4", {"train": 4, "validation": 4, "test": 4}),
    ({"limit": 100}, "quickstart-limit100", {"train": 100, "validation": 100, "test": 100}),
    ({"dataset": "/some/my-talks"}, "quickstart-some--my-talks", {}),
    ({"dataset": "me/talks", "limit": 2}, "quickstart-me--talks-limit2", {"train": 2, "validation": 2, "test": 2}),
])  # fmt: skip
def test_a_derived_experiment_has_its_own_name(changes, name, dialogues):
    base = experiments.EXPERIMENTS["quickstart"]
    expected = replace(base, name=name, dialogues=dialogues, dataset=changes.get("dataset", base.dataset))
    assert experiments.experiment("quickstart", **changes) == expected


def test_the_name_of_a_derived_experiment_tells_folders_of_one_name_apart(
    tmp_path, tiny_data, tiny_models, monkeypatch
):
    def name(**changes):
        return experiments.experiment("quickstart", **changes).name

    for version, model in (("v1", "t5"), ("v2", "llama")):
        shutil.copytree(tiny_data, tmp_path / version / "dialogues")
        shutil.copytree(tiny_models[model], tmp_path / version / "checkpoint-500")
    first, second = tmp_path / "v1" / "dialogues", tmp_path / "v2" / "dialogues"
    assert name(dataset=first) == name(dataset=second)  # until their content differs
    (second / "train.jsonl").write_text((first / "train.jsonl").read_text().replace("forgot", "missed", 1))
    chosen = [name(dataset=first), name(dataset=second)]
    chosen += [name(model=tmp_path / version / "checkpoint-500") for version in ("v1", "v2")]
    chosen += [name(model=f"{owner}/bart-base") for owner in ("one", "other")]
    assert len(set(chosen)) == 6 and all(re.fullmatch(r"quickstart-dialogues-[0-9a-f]{6}", one) for one in chosen[:2])
    monkeypatch.chdir(tmp_path / "v1")
    (tmp_path / "v1" / "dialogues" / "README.md").write_text("What the dialogues are.")
    (tmp_path / "link").symlink_to(first)
    for same in ("dialogues", "./dialogues/", "../link"):  # the same data by other ways
        assert name(dataset=same) == chosen[0]


def test_limits_keep_the_first_dialogues_and_unknown_names_are_errors(tiny_data):
    whole = data.load_source(str(tiny_data))
    kept = data.load(tiny_experiment("none", tiny_data, dialogues={"train": 3, "test": 99}))
    assert kept["train"].to_list() == whole["train"].to_list()[:3]
    assert [len(kept[split]) for split in data.SPLITS] == [3, 4, 5]
    with pytest.raises(ConfigurationError, match=f"'slowstart'.*{', '.join(experiments.EXPERIMENTS)}"):
        experiments.experiment("slowstart")
    with pytest.raises(ConfigurationError, match="not 0"):
        experiments.experiment("quickstart", limit=0)


def test_ngram_overlap_by_hand():
    # ab and bc of ab, bc, cd (the others do not add up); both of ab, bc normalized; nothing; a whole text
    assert data.ngram_overlap(["a b c d", "A: b, c!", "e f", "a"], ["a b c x", "c d", "a"], n=2) == [2 / 3, 1, 0, 1]
    assert data.ngram_overlap(["1 2 3 4 5 6 7 8 9", "1 2 3 4 5 6 7"], ["0 1 2 3 4 5 6 7 8"]) == [1 / 2, 0]


@pytest.mark.parametrize(
    "text", ["小明和小红讨论去北京旅行的计划", "ราม กับ สีดา ไปตลาด", "राम और सीता आज सुबह बाज़ार से सब्ज़ियाँ लाए थे"]
)
def test_near_duplicates_are_found_in_any_script(text):
    assert data.ngram_overlap([text], [f"A: {unicodedata.normalize('NFD', text)}!"]) == [1]
    assert data.ngram_overlap([text], ["".join(reversed(text))]) == [0]


def test_near_duplicates_by_hand():
    words = [f"w{number}" for number in range(20)]
    # Beside a repeat within train: one dialogue is in train but for case and marks, one has 9 of its 12 8-grams there.
    train, validation = [" ".join(words), "#Person1#: Yes!", "person1 YES"], [" ".join(words).upper() + "."]
    texts = {"train": train, "validation": validation, "test": [" ".join([*words[:16], "x", "x", "x"])]}
    table = data.near_duplicates(
        {split: datasets.Dataset.from_dict({"dialogue": rows}) for split, rows in texts.items()}
    )
    counts = table.iloc[:, 2:].fillna(-1).to_numpy().tolist()
    assert counts == [[1, -1, -1], [0, -1, -1], [0, -1, -1], [1, 1, 1], [0, 0, 1], [0, 0, 1]]


def test_selection_leaves_out_what_nearly_stands_in_train():
    rows = [
        row | {"dialogue": row["dialogue"] + f" {' '.join(f'word{n}x{m}' for m in range(60))}"}
        for n, row in enumerate(tiny_rows(6))
    ]
    train, validation = data.group_references(rows[:4], "train"), data.group_references(rows[2:], "validation")
    assert data.drop_near_duplicates(validation, train)["id"] == ["d_4", "d_5"]
    everything = data.group_references(rows, "all")
    assert len(data.drop_near_duplicates(validation, everything)) == 4  # nothing would be left


def test_the_sample_is_large_and_alike_in_form_and_shares_nothing():
    sample = data.load_source("sample")
    places, odd = {}, []
    for row in (row for rows in sample.values() for row in rows):
        turns, words = row["dialogue"].split("\n"), re.sub("[^a-z0-9]+", " ", row["dialogue"].lower()).split()
        speakers = [re.match(r"(#Person\d#): \S", turn) for turn in turns]
        alike = all(speakers) and len({match[1] for match in speakers}) == 2
        spoken = len(row["dialogue"].split()) - len(turns)
        if not (alike and 6 <= len(turns) <= 14 and 45 <= spoken <= 110):
            odd.append(row["id"])
        for start in range(len(words) - 7):
            places.setdefault(tuple(words[start : start + 8]), set()).add(row["id"])
    # Four runs of eight common words, and no more.
    shared = [["test_0", "train_70", "train_95"], ["test_39", "train_73"], ["test_41", "validation_15"]]
    shared.append(["test_43", "train_80"])
    assert (odd, sorted(sorted(ids) for ids in places.values() if len(ids) > 1)) == ([], shared)
    table = data.near_duplicates(sample)
    assert (table["repeats"].tolist(), table["shares 50 %"].dropna().tolist()) == ([0] * 6, [0] * 3)
    assert {len(several) for split in ("validation", "test") for several in sample[split]["summaries"]} == {3}
    least = {"train": 120, "validation": 20, "test": 40}
    assert {split: len(rows) for split, rows in sample.items() if len(rows) < least[split]} == {}
