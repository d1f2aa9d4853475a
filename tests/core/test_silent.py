"""What would give a wrong number without a word: weights, templates, end tokens, seeds and texts that do not fit."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import transformers
from helpers import tiny_experiment, tiny_rows, write_jsonl

from dialogue_summarization import callbacks, data, experiments, files, generation, models, ranks, runs, study, training
from dialogue_summarization.commands import trained
from dialogue_summarization.errors import ConfigurationError, DataError, ModelError
from dialogue_summarization.evaluation import systems
from dialogue_summarization.experiments import Settings

LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>' + messages[0].content + '<</SYS>>' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}[INST] {{ system if system is defined and loop.first else '' }}"
    "{{ message.content }} [/INST]{% endfor %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<user>{{ message.content }}</user>{% endfor %}"
)


@pytest.fixture
def copied(tiny_models, family_name, tmp_path):
    return shutil.copytree(tiny_models[family_name], tmp_path / "copied")


def rewrite(file, change):
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {f"module.{name}": weight for name, weight in weights.items()},
        lambda weights: {name: weight for name, weight in weights.items() if "1." not in name},  # a layer is not there
        lambda weights: weights | {name.replace(".1.", ".2."): weight.clone() for name, weight in weights.items()},
    ],
    ids=["other names", "too few layers", "too many layers"],
)
def test_weights_that_do_not_fill_the_model_are_refused(change, copied, tiny_data):
    assert models.load_model(tiny_experiment(copied, tiny_data))
    rewrite(copied / "model.safetensors", change)
    with pytest.raises(ModelError, match=r"not those of its config\.json: (no|unknown) .*Copy both anew"):
        models.load_model(tiny_experiment(copied, tiny_data))


def test_a_model_without_a_head_is_refused(tiny_models, tiny_data, tmp_path):
    shutil.copytree(tiny_models["llama"], tmp_path / "base")
    transformers.AutoModel.from_pretrained(tiny_models["llama"]).save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match=r"no lm_head\.weight"):
        models.load_model(tiny_experiment(tmp_path / "base", tiny_data))


def test_an_adapter_of_other_names_or_sizes_is_refused(family_name, made_once, tmp_path):
    run = made_once(family_name, "lora-balanced", tmp_path)
    file = run.weights / "adapter_model.safetensors"
    rewrite(file, lambda weights: {f"module.{name}": weight for name, weight in weights.items()})
    with pytest.raises(ModelError, match=r"cannot be loaded .*missing adapter keys"):
        study.load_run(run)
    config = json.loads((run.weights / "adapter_config.json").read_text("utf-8"))
    (run.weights / "adapter_config.json").write_text(json.dumps(config | {"r": 2}), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        study.load_run(run)


def test_a_base_model_that_changed_under_a_run_is_refused(copied, tiny_data, tmp_path):
    experiment = tiny_experiment(copied, tiny_data)
    made = [
        study.run(experiment, experiments.method(name), outputs=tmp_path) for name in ("zero-shot", "lora-balanced")
    ]
    full = study.run(experiment, experiments.method("full"), outputs=tmp_path)
    for run in made:
        assert study.load_run(run)
    rewrite(copied / "model.safetensors", lambda weights: {name: weight + 1 for name, weight in weights.items()})
    for run in made:
        with pytest.raises(ModelError, match="has changed since"):
            study.load_run(run)
    assert study.load_run(full)  # which has weights of its own


@pytest.mark.parametrize("named", [1, [1, 2], None], ids=["another", "others", "none"])
def test_summaries_end_with_the_token_that_training_teaches(named, tiny_models, tiny_data, tmp_path):
    folder = shutil.copytree(tiny_models["llama"], tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"eos_token_id": named}), encoding="utf-8")
    experiment = tiny_experiment(folder, tiny_data)
    bundle = models.load_model(experiment)
    ends = generation.generation_config(bundle, experiment.generation).eos_token_id
    assert bundle.tokenizer.eos_token_id == 4 and 4 in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(LLAMA_2, "[INST] Hi: {} [/INST]"), (GEMMA, "<user>Hi: {}</user>")],
    ids=["Llama 2", "Gemma"],
)
def test_chat_templates_without_a_place_for_a_system_prompt(template, prompt, tiny_models, tiny_data):
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, prompt="Hi: {dialogue}")
    tokenizer, family = models.load_tokenizer(str(tiny_models["llama"]), experiment)
    tokenizer.chat_template = template
    assert family.render("Ann: Soup?") == prompt.format("Ann: Soup?")


@pytest.mark.parametrize(
    "template", ["Hello", "{{ messages[-1].content | upper | replace('\ue000', '') }}", "{{ x.y.z }}"]
)
def test_chat_templates_that_do_not_show_the_dialogue_are_refused(template, tiny_models, tiny_data):
    experiment = tiny_experiment(tiny_models["llama"], tiny_data)
    tokenizer, family = models.load_tokenizer(str(tiny_models["llama"]), experiment)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template"):
        family.render("Ann: Soup?")


def test_a_script_that_is_not_known_is_found_behind_others(tiny_models, tiny_data):
    _, family = models.load_tokenizer(str(tiny_models["llama"]), tiny_experiment(tiny_models["llama"], tiny_data))
    family.tokenizer.backend_tokenizer.pre_tokenizer = None  # so that only trained characters are known
    chinese = ["安要汤" * 20] * 60
    texts = [row["dialogue"] for row in tiny_rows(50)]
    with pytest.raises(DataError, match=r"knows \d+% of the characters"):
        family.encode_all([*texts, *chinese])


def test_fractions_of_an_epoch_are_averaged_as_epochs_of_their_own(tiny_models, tiny_data, tmp_path, monkeypatch):
    kept, keep = [], callbacks.EpochMean.keep
    monkeypatch.setattr(callbacks.EpochMean, "keep", lambda self, *args: (kept.append(args[1]), keep(self, *args)))
    settings = Settings(5e-3, epochs=2.5, batch_size=4, select_by="loss", averaged_epochs=2)
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, settings={"full": settings})
    loaded, load = [], callbacks.EpochMean.load_into
    monkeypatch.setattr(
        callbacks.EpochMean, "load_into", lambda self, model: (loaded.extend(self._files()), load(self, model))
    )
    study.run(experiment, experiments.method("full"), outputs=tmp_path)
    assert kept == [4, 8, 10] and [int(file.stem) for file in loaded] == [8, 10]  # steps


def test_seeds_with_other_settings_are_no_seeds_of_one_method(family_name, made_once, tiny_data, tmp_path):
    run = made_once(family_name, "full", tmp_path)
    test = data.load_source(str(tiny_data))["test"]
    second = replace(run, config=replace(run.config, seed=1))
    assert len(systems.of_runs([run, second], test)) == 1
    other = replace(second, config=replace(second.config, settings=run.config.settings | {"learning_rate": 0.1}))
    with pytest.raises(DataError, match="seeds with other settings"):
        systems.of_runs([run, other], test)


def test_a_record_cut_short_in_both_tables_is_damaged(family_name, made_once, tmp_path):
    folder = made_once(family_name, "full", tmp_path).folder
    for name in ("predictions.csv", "scores.csv"):
        lines = (folder / name).read_text("utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(runs.RecordError, match="are not of the same dialogues"):
        runs.read(folder)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_that_numpy_does_not_take_are_refused_before_any_work(seed, tiny, tmp_path):
    with pytest.raises(ConfigurationError, match="whole number from 0 to 4294967295"):
        study.run(tiny, experiments.method("zero-shot"), seed, outputs=tmp_path)


@pytest.mark.parametrize(
    "text", ["('Ann: Hi', 'Ben: Ho')", "array(['x'], dtype=object)", "[np.str_('x')]", "[nan, 'x']"]
)
def test_lists_that_were_written_as_text_are_refused(text):
    with pytest.raises(DataError, match="a list written as text"):
        files.refuse_written_list(text, "row 1")


@pytest.mark.parametrize("text", ["(laughs) 'Hello'", "[None of them came.", "Ann (and 'Ben') came."])
def test_texts_with_brackets_are_texts(text):
    files.refuse_written_list(text, "row 1")


def test_a_header_in_the_middle_is_no_dialogue(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("id,dialogue,summary\n1,Ann: Hi,They meet\nid,dialogue,summary\n2,Ben: Ho,They part\n", "utf-8")
    with pytest.raises(DataError, match="row 2: the header again"):
        files.read_rows(file)


@pytest.mark.parametrize("header", ["id,dialogue,summary,Summary", "id,dialogue,summary, summary"])
def test_columns_that_differ_in_case_or_blanks_are_there_twice(header, tmp_path):
    (tmp_path / "train.csv").write_text(f"{header}\n1,Ann: Hi,x,y\n", "utf-8")
    with pytest.raises(DataError, match="is there twice"):
        files.read_rows(tmp_path / "train.csv")


def test_quotes_behind_a_blank_are_quotes(tmp_path):
    (tmp_path / "train.csv").write_text('id, dialogue, summary\n1, "Ann: Hi, Ben", "x ""y"""\n', "utf-8")
    assert files.read_rows(tmp_path / "train.csv") == [{"id": "1", "dialogue": "Ann: Hi, Ben", "summary": 'x "y"'}]


def test_short_dialogues_that_repeat_are_near_duplicates(tmp_path):
    assert data.ngram_overlap(["Ann: Hi!", "Ben: Ho"], ["ann: hi"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["ID", " id "])
def test_ids_are_found_whatever_their_case(name, tmp_path, tiny_data):
    test = data.load_source(str(tiny_data))["test"]
    rows = [{name: key, "prediction": texts[0]} for key, texts in zip(test["id"], test["summaries"], strict=True)]
    write_jsonl(tmp_path / "p.jsonl", rows[::-1])
    texts = systems.load_predictions(tmp_path / "p.jsonl", "prediction", test)
    assert texts == [texts[0] for texts in test["summaries"]]


def test_ids_in_a_column_of_another_name_are_not_passed_over(tmp_path):
    for split in data.SPLITS:
        write_jsonl(tmp_path / f"{split}.jsonl", tiny_rows(6))
    test = data.load_source(str(tmp_path))["test"]
    rows = [{"dialogue_id": row["id"], "prediction": row["summary"]} for row in tiny_rows(6)]
    write_jsonl(tmp_path / "p.jsonl", rows[::-1])
    with pytest.raises(DataError, match=r"the column 'dialogue_id' holds the ids\. Call it id"):
        systems.load_predictions(tmp_path / "p.jsonl", "prediction", test)


def test_empty_variables_of_a_launcher_are_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    ranks.require_one_process()
    assert "WORLD_SIZE" not in os.environ


def test_a_precision_left_in_the_shell_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = training.training_arguments(Settings(1e-3), tmp_path)
    assert not arguments.bf16 and os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no"


def test_names_of_runs_are_no_patterns(tmp_path):
    with pytest.raises(ConfigurationError, match="There is no run"):
        trained.find_runs(tmp_path.relative_to(tmp_path) / "a**b")


def test_a_tokenizer_with_far_fewer_tokens_is_anothers(copied, tiny_data):
    file = copied / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"vocab_size": 500}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"knows 400 tokens, the model 500"):
        models.load_tokenizer(str(copied), tiny_experiment(copied, tiny_data))
