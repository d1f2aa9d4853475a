"""Models, tokenizers and texts that do not belong together are refused before anything is loaded or trained."""

import json
import shutil

import pytest
import tokenizers
import transformers
from helpers import tiny_experiment, tiny_rows
from tokenizers import pre_tokenizers, trainers

from dialogue_summarization import data, models
from dialogue_summarization.errors import ConfigurationError, DataError, ModelError
from dialogue_summarization.prompts import PROMPT
from dialogue_summarization.tokenization import EncoderDecoder, family_of
from dialogue_summarization.training import encode_split

TOKENIZER = ("tokenizer*", "chat_template*")


@pytest.fixture
def copied(tiny_models, tmp_path):
    """A copy of a tiny model's folder without some files, with another's tokenizer if one is named."""

    def copy(family, *without, tokenizer=None):
        folder = shutil.copytree(tiny_models[family], tmp_path / family, ignore=shutil.ignore_patterns(*without))
        for path in tiny_models[tokenizer].glob("tokenizer*") if tokenizer else ():
            shutil.copy(path, folder)
        return folder

    return copy


def refusal(folder, tiny_data):
    """What is said of a model, by each way in: loading all of it, and its tokenizer alone."""
    experiment = tiny_experiment(folder, tiny_data)
    with pytest.raises(ModelError) as caught:
        models.load_model(experiment)
    with pytest.raises(ModelError) as again:
        models.load_tokenizer(models.local_snapshot(str(folder)), experiment)
    assert str(caught.value) == str(again.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("without", [TOKENIZER, ("tokenizer.json",)])
def test_a_model_without_its_tokenizer_is_told_what_to_copy(family_name, without, copied, tiny_data):
    said = refusal(copied(family_name, *without), tiny_data)
    assert "without its tokenizer: copy tokenizer.json, tokenizer_config.json" in said and "trained from" in said


def test_a_checkpoint_names_where_its_tokenizer_is(copied, tiny_data):
    folder = copied("t5", *TOKENIZER)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "google/flan-t5-base"}))
    assert "from google/flan-t5-base." in refusal(folder, tiny_data)


def test_a_tokenizer_that_makes_nothing_of_words_is_no_tokenizer(copied, tiny_data):
    folder = copied("t5", *TOKENIZER)  # of vocab.json alone transformers makes a tokenizer of special tokens
    (folder / "vocab.json").write_text("{}")
    assert "knows no word of the prompt" in refusal(folder, tiny_data)


@pytest.mark.parametrize(
    ("family", "tokenizer", "said"),
    [("llama", "t5", "ends texts with token 1, the model with 4"), ("t5", "llama", "with token 4, the model with 1")],
)
def test_the_tokenizer_of_another_model_is_refused(family, tokenizer, said, copied, tiny_data):
    assert said in refusal(copied(family, *TOKENIZER, tokenizer=tokenizer), tiny_data)


def test_more_tokens_than_the_model_has_are_refused(family_name, copied, tiny_data):
    folder = copied(family_name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["#Person7#", "#Person8#"])  # and the embedding stays as it is
    tokenizer.save_pretrained(folder)
    assert "knows 402 tokens, the model 400" in refusal(folder, tiny_data)


def test_a_sentencepiece_model_names_the_package_that_reads_it(copied, tiny_data, monkeypatch):
    monkeypatch.setattr("dialogue_summarization.model_checks.find_spec", lambda name: None)
    folder = copied("t5", "tokenizer.json")
    (folder / "spiece.model").write_bytes(b"sentences")
    said = refusal(folder, tiny_data)
    assert "uv pip install sentencepiece" in said and "tiktoken" not in said


@pytest.mark.parametrize("model_type", ["gpt2", "bert", "mamba"])
def test_an_unknown_architecture_is_named_with_the_known_ones(model_type, copied, tiny_data):
    folder = copied("t5")
    transformers.AutoConfig.for_model(model_type).save_pretrained(folder)
    assert (
        f"a {model_type!r} model" in (said := refusal(folder, tiny_data))
        and "t5, mt5, bart, mbart, pegasus, llama" in said
    )


def test_folders_that_are_no_model_say_what_to_name(copied, tmp_path, tiny_data):
    adapter = copied("t5")  # beside a whole model, from_pretrained would load the adapter's base
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "google/flan-t5-base"}')
    outer, run = tmp_path / "outer", tmp_path / "run"
    shutil.copytree(copied("llama"), outer / "checkpoint-500")
    (run / "model").mkdir(parents=True)
    for path in (run / "config.json", run / "model" / "config.json"):
        path.write_text('{"experiment": "quickstart"}')
    for folder, hint in ((adapter, "google/flan-t5-base"), (outer, "checkpoint-500"), (run, "in it: model")):
        with pytest.raises(ModelError, match=hint):
            models.local_snapshot(str(folder))
    with pytest.raises(ModelError, match="no folder"):
        models.local_snapshot(str(tmp_path / "nowhere"))


def test_texts_in_a_script_that_the_tokenizer_does_not_know_are_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = tiny_rows(20)
    texts = [row["dialogue"] + row["summary"] for row in rows]
    backend.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>", "<pad>"]))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
    family = EncoderDecoder(tokenizer, 200, "{dialogue}", decoder_start_token_id=2)
    assert len(family.encode_all([row["dialogue"] for row in rows], [row["summary"] for row in rows])) == 20
    with pytest.raises(DataError, match="knows 57%"):  # Ann hello: 8 of 14 characters
        family.encode_all(["Ann Hello 你好 你好 你好"])
    with pytest.raises(DataError, match="script"):
        family.encode_all([rows[0]["dialogue"][:20]], ["Анна забыла красный велосипед дома и просит прощения."])
    assert family.encode_all(["Ann Hello Ben soup 你好"])[0]["input_ids"].count(tokenizer.unk_token_id) == 1


@pytest.mark.parametrize(("model_type", "limit"), [("bart", 108), ("pegasus", 108), ("llama", 96)])
def test_what_is_longer_than_the_models_positions_is_said_or_cut(model_type, limit, tiny_models, tiny_data):
    tokenizer = models.load_tokenizer(
        str(tiny_models["llama" if model_type == "llama" else "t5"]), tiny_experiment("", "")
    )[0]
    config = transformers.AutoConfig.for_model(model_type, max_position_embeddings=128)
    family = family_of(config, tokenizer, 256, PROMPT, 12)
    assert family.max_prompt_tokens == limit  # 128 less 20 virtual tokens, and in one sequence 12 of the summary
    [row] = family.encode_all(["Ann: Hello. " * 200], ["Ann says hello."])
    assert row["truncated"] and len(row["input_ids"]) <= limit
    train = data.load_source(str(tiny_data))["train"]
    long = train.map(lambda row, number: row | ({"summaries": ["Ann forgot " * 200]} if number == 3 else {}), True)
    with pytest.raises(DataError, match=r"positions for 108 tokens.*'Ann forgot Ann forgot.*leave its row out"):
        encode_split(long, family)
    with pytest.raises(ConfigurationError, match="leaves no room for the dialogue"):
        family_of(config, tokenizer, 256, "word " * 200 + "{dialogue}").encode("Hi")
