"""Settings given as text: what they change, how a derived experiment is called, and what is refused."""

import dataclasses
import json

import pytest

from dialogue_summarization import experiments, settings, study
from dialogue_summarization.errors import ConfigurationError
from dialogue_summarization.experiments import METHODS, Generation, Settings


def quickstart(*given, runs=None):
    return experiments.experiment("quickstart", settings=given, runs=runs)


def test_every_field_can_be_set_and_every_value_in_use_is_allowed():
    for kind, one in (("training", Settings), ("generation", Generation)):
        assert [*settings.ALLOWED[kind]] == [field.name for field in dataclasses.fields(one)]
    shown = 0
    for experiment in experiments.EXPERIMENTS.values():
        for name in experiment.runs:
            method = METHODS[name]
            values = vars(experiment.generation_for(method)) | (method.peft or {})
            values |= vars(experiment.settings_for(method)) if method.is_trained else {}
            for field, value in values.items():
                text = ",".join(value) if isinstance(value, tuple) else value
                if value is not None and field != "peft_type":
                    same = experiments.experiment(experiment.name, settings=[f"{name}.{field}={text}"])
                    assert same == experiment
                    shown += 1
    assert shown > 140


def test_a_setting_of_one_run_leaves_the_others_alone():
    changed = quickstart("lora-balanced.r=32", "full.learning_rate=5e-4", "lora-balanced.use_dora=true")
    assert changed.name == "quickstart-full.learning_rate=0.0005-lora-balanced.r=32-lora-balanced.use_dora=true"
    assert changed.settings_for(METHODS["full"]) == Settings(5e-4, epochs=1, batch_size=4, select_by="loss")
    assert changed.settings_for(METHODS["lora-balanced"]) == quickstart().settings_for(METHODS["lora-balanced"])
    adapter = changed.adapted(METHODS["lora-balanced"]).peft
    assert adapter == METHODS["lora-balanced"].peft | {"r": 32, "use_dora": True} and adapter["lora_alpha"] == 32
    assert changed.adapted(METHODS["lora-efficient"]) == METHODS["lora-efficient"]


def test_decoding_of_no_run_is_that_of_all():
    changed = quickstart("num_beams=2", "zero-shot.num_beams=3")
    beams = {name: changed.generation_for(METHODS[name]).num_beams for name in ("zero-shot", "full", "lora-efficient")}
    assert beams == {"zero-shot": 3, "full": 2, "lora-efficient": 2}
    assert changed.generation_for(METHODS["zero-shot"]).no_repeat_ngram_size == 3  # as before
    assert changed.name == "quickstart-num_beams=2-zero-shot.num_beams=3"


def test_without_a_run_a_setting_is_of_the_only_one_that_has_it():
    assert quickstart("r=4").name == "quickstart-lora-balanced.r=4"
    assert quickstart("epochs=2", runs=["zero-shot", "full"]) == quickstart("full.epochs=2")


def test_many_settings_make_a_name_that_a_folder_can_have():
    fields = ("epochs=2", "batch_size=8", "warmup=0.2", "schedule=linear", "weight_decay=0.1", "max_grad_norm=2")
    last = ("patience=1", "select_by=rouge1")
    names = {quickstart(*(f"full.{text}" for text in (*fields, one))).name for one in last}
    assert len(names) == 2 and all(len(name) < 130 for name in names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lr=1", "no setting 'lr'.*learning_rate.*num_beams.*lora_dropout"),
        ("learning_rate=1e-3", "2 of zero-shot, full, lora-balanced have it: name one, as full.learning_rate=0.001"),
        ("full.learning_rate=fast", r"full.learning_rate=fast: allowed is a number from 1e-06 to 1\."),
        ("full.learning_rate=nan", "allowed is a number from 1e-06 to 1"),
        ("full.learning_rate=2", "allowed is a number from 1e-06 to 1"),
        ("full.batch_size=2.5", "allowed is a whole number from 1 to 4096"),
        ("full.schedule=cosinus", "allowed is one of cosine, linear"),
        ("full.schedule=cosine,linear", "allowed is one of cosine, linear"),
        ("lora-balanced.use_dora=yes", "allowed is one of true, false"),
        ("lora-balanced.target_modules=query,norm", "with commas between, of query, key, value, output, mlp_in"),
        ("full.epochs", "full.epochs: allowed is a number"),
        ("full.r=4", "one run's adapter, and full has none"),
        ("zero-shot.epochs=2", "one run's training, and zero-shot has none"),
        ("full.patience=1", "patience=1 stops nothing in 1 epochs"),
        ("fill.epochs=2", "no run 'fill'"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(given, said):
    with pytest.raises(ConfigurationError, match=said):
        quickstart(given)


def test_a_setting_is_given_once_and_where_no_run_takes_it_that_is_said():
    with pytest.raises(ConfigurationError, match=r"full.epochs is given twice"):
        quickstart("full.epochs=2", "full.epochs=3")
    with pytest.raises(ConfigurationError, match="0 of zero-shot have it"):
        quickstart("epochs=2", runs=["zero-shot"])


@pytest.mark.parametrize("family_name", ["llama"], indirect=True)
def test_a_run_is_trained_and_recorded_with_its_settings(tiny, register, tmp_path):
    register(tiny)

    def asked(*given):
        return experiments.experiment("tiny", settings=[f"lora-balanced.{text}" for text in given])

    method = METHODS["lora-balanced"]
    keys = [study.plan_run(asked(*given), method, 0, tmp_path).config.key for given in ((), ("r=16",), ("r=2",))]
    assert keys[0] == keys[1] != keys[2]
    run = study.run(asked("r=2", "lora_dropout=0.1", "epochs=3", "learning_rate=1e-3"), method, outputs=tmp_path)
    saved = json.loads((run.folder / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert (saved["r"], saved["lora_dropout"], saved["lora_alpha"]) == (2, 0.1, 32)
    assert run.config.peft["r"] == 2 and run.config.settings["epochs"] == 3 and run.log["epoch"].max() == 3
    assert run.log["learning_rate"].max() == pytest.approx(1e-3)
    assert run.folder.parent.parent.name.startswith("tiny-lora-balanced.epochs=3-")
