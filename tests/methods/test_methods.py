"""Every method on both families: it learns, comes back from disk, and does not depend on how dialogues are batched."""

from dataclasses import replace

import pytest
import torch
import transformers
from helpers import fit, save_tiny, tiny_experiment, tiny_rows, token_loss, write_jsonl

from dialogue_summarization import data, models
from dialogue_summarization.acceleration.compilation import supports_packing
from dialogue_summarization.errors import ModelError
from dialogue_summarization.experiments import METHODS, Generation, Settings
from dialogue_summarization.generation import summarize
from dialogue_summarization.methods.table import FURTHER_METHODS
from dialogue_summarization.training import SummarizationTrainer, encode_split, training_arguments

ALL = METHODS | FURTHER_METHODS
TRAINED = [name for name, method in ALL.items() if method.is_trained and not method.quantization]
ON_TINY = [name for name in TRAINED if name != "last-4-blocks"]  # the tiny models decode in two blocks
GENERATION = Generation(max_new_tokens=12)


def otherwise(rows, greeting):
    """The same dialogues with another greeting, and summaries in other words."""
    return [
        row
        | {"id": f"{row['id']}b", "dialogue": row["dialogue"].replace("Hello", greeting)}
        | {"summary": "No, " + row["summary"].replace(" forgot ", " left ")}
        for row in rows
    ]


@pytest.fixture(scope="module", params=["t5", "llama"])
def trained_base(request, tmp_path_factory):
    """A model that has learned to summarize other dialogues in two ways, depending on their greeting.

    It is to learn the second way for the first greeting: a method with a few hundred weights can only call up what a
    model knows.
    """
    base = tiny_rows(32, start=8) + otherwise(tiny_rows(32, start=8), "Please")
    folder = tmp_path_factory.mktemp(request.param)
    for name, rows in (("other", base), ("four", otherwise(tiny_rows(4), "Hello"))):
        (folder / name).mkdir()
        for split in ("train", "validation", "test"):
            write_jsonl(folder / name / f"{split}.jsonl", rows)
    experiment = tiny_experiment(save_tiny(request.param, folder / "random"), folder / "other")
    settings = Settings(1e-2, epochs={"t5": 15, "llama": 30}[request.param], batch_size=8)
    bundle = models.load_model(experiment)
    bundle, _ = fit(bundle, METHODS["full"], encode_split(data.load(experiment)["train"], bundle.family), settings)
    models.save(bundle, folder / "base", "")
    return tiny_experiment(folder / "base", folder / "four")


def trained(experiment, method, settings, folder):
    rows, bundle = data.load(experiment)["train"], models.load_model(experiment, quantization=method.quantization)
    transformers.set_seed(0)
    bundle = replace(bundle, model=models.apply_method(bundle.model, method))
    pairs = encode_split(rows, bundle.family)
    args = training_arguments(settings, folder, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    trainer = SummarizationTrainer(
        bundle, settings, GENERATION, rows, method, args=args, train_dataset=pairs, eval_dataset=pairs
    )
    trainer.train()
    return trainer


def loss(bundle, rows):
    """The mean over summary tokens, without dropout."""
    bundle.model.eval()
    with torch.no_grad():
        return token_loss(bundle, list(rows)).item()


def write(bundle, experiment, **options):
    return summarize(bundle, data.load(experiment)["test"]["dialogue"], GENERATION, progress=False, **options)


def shaken(experiment, method):
    """A model as the method would train it, its new weights away from where they begin."""
    bundle = models.load_model(experiment)
    transformers.set_seed(0)
    model = models.apply_method(bundle.model, method)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and method.peft:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    return replace(bundle, model=model.eval())


def generated_and_ranked_first(bundle, dialogue):
    """Tokens that `generate` writes, and those that one forward pass ranks first behind the ones before them."""
    batch = bundle.family.collate([bundle.family.encode(dialogue)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        output = bundle.model.generate(**inputs, max_new_tokens=8, do_sample=False)
        tokens = bundle.family.generated_ids(output, inputs["input_ids"].shape[1])[0].tolist()
        tokens = tokens[1 - bundle.family.label_shift :]  # without the start of an encoder-decoder model
        batch = bundle.family.collate([{"input_ids": inputs["input_ids"][0].tolist(), "labels": tokens}])
        batch.pop("labels")
        return tokens, bundle.model(**batch).logits[0].argmax(dim=-1)[: len(tokens)].tolist()


@pytest.fixture(scope="module")
def untrained(trained_base):
    """The pairs that the base is to learn, its loss of them, and what it writes."""
    base = models.load_model(trained_base)
    rows = encode_split(data.load(trained_base)["train"], base.family)
    return rows, loss(base, rows), write(base, trained_base)


@pytest.mark.parametrize("name", ON_TINY)
def test_a_method_learns_saves_reloads_and_writes_the_same(trained_base, untrained, tmp_path, name):
    method, (rows, loss_before, texts_before) = ALL[name], untrained
    rate = {"rslora": 5e-3, "lora-plus": 2e-3}.get(name, 2e-2 * method.lr_multiplier if method.peft else 5e-3)
    # Of a step each. The slow one: how far it gets in 50 depends on the processor.
    epochs = {"prompt-tuning": 80, "prefix-tuning": 40, "ia3": 40, "layernorm-tuning": 40, "lokr": 40}.get(name, 20)
    settings = Settings(rate, epochs=epochs, batch_size=8, select_by="loss")
    if method.loraplus_ratio:  # whose optimizer is our trainer's
        bundle = trained(trained_base, method, settings, tmp_path).bundle
    else:
        bundle, _ = fit(models.load_model(trained_base), method, rows, settings)
    loss_behind = loss(bundle, rows)
    assert loss_behind < loss_before / 2
    models.save(bundle, tmp_path / "saved", "the-base")
    assert (tmp_path / "saved" / "adapter_config.json").exists() == bool(method.peft)
    reloaded = models.load_model(trained_base, tmp_path / "saved")
    assert loss(reloaded, rows) == pytest.approx(loss_behind, abs=1e-5)
    assert write(reloaded, trained_base) == write(bundle, trained_base) != texts_before


@pytest.mark.parametrize("name", ON_TINY)
def test_padding_changes_no_loss_and_no_summary(trained_base, name):
    bundle = shaken(trained_base, ALL[name])
    dialogues = [row["dialogue"] * (1 + number % 3) for number, row in enumerate(tiny_rows(4))]
    rows = [bundle.family.encode(text, "No, it was the old map.") for text in dialogues]
    assert len({len(row["input_ids"]) for row in rows}) > 3
    assert loss(bundle, rows) == pytest.approx(sum(loss(bundle, [row]) for row in rows) / 4, abs=1e-5)
    together = summarize(bundle, dialogues, GENERATION, progress=False, tokens=10_000)
    assert together == summarize(bundle, dialogues, GENERATION, progress=False, tokens=1)
    for dialogue in dialogues:
        tokens, ranked_first = generated_and_ranked_first(bundle, dialogue)
        assert tokens == ranked_first and len(tokens) > 0


@pytest.mark.parametrize("name", ON_TINY)
def test_packed_rows_are_not_for_virtual_tokens(tiny, name):
    model = models.apply_method(models.load_model(tiny).model, ALL[name])
    assert supports_packing(model) == (name not in ("prefix-tuning", "prompt-tuning"))


def test_a_method_without_settings_of_its_own_learns_at_a_multiple_of_the_general_rate(tiny):
    lora = tiny.settings["lora"]
    for name, multiple in (("lora-balanced", 1), ("dora", 1), ("ia3", 5), ("lora-plus", 0.25)):
        assert tiny.settings_for(ALL[name]) == replace(lora, learning_rate=lora.learning_rate * multiple)
    assert tiny.settings_for(ALL["last-2-blocks"]) == tiny.settings["full"]
    own = replace(tiny, settings={**tiny.settings, "ia3": Settings(7e-3)})
    assert own.settings_for(ALL["ia3"]) == Settings(7e-3)


def test_lora_plus_lets_b_learn_faster_than_a(trained_base, tmp_path):
    settings = Settings(1e-3, epochs=1, batch_size=8, weight_decay=0.3)
    trainer = trained(trained_base, ALL["lora-plus"], settings, tmp_path)
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    seen = {}
    for group in trainer.optimizer.optimizer.param_groups:
        for weight in group["params"]:
            kind = "A" if "lora_A" in names[id(weight)] else "B"
            seen.setdefault(kind, set()).add((group["initial_lr"], group["weight_decay"]))
    assert seen == {"A": {(1e-3, 0.3)}, "B": {(16e-3, 0.3)}}


def test_the_last_blocks_are_the_decoders(tiny):
    model = models.apply_method(models.load_model(tiny).model, ALL["last-2-blocks"])
    trained_names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    blocks = ("decoder.block.0.", "decoder.block.1.", "model.layers.0.", "model.layers.1.")
    assert trained_names and all(name.startswith(blocks) for name in trained_names)
    with pytest.raises(ModelError, match=rf"last-4-blocks.*{model.config.model_type}.*2 blocks"):
        models.apply_method(model, ALL["last-4-blocks"])


def test_what_peft_cannot_do_is_an_error_that_names_both(tiny):
    method = replace(ALL["oft"], peft=ALL["oft"].peft | {"r": 3})  # PEFT takes one of r and block size
    model = models.load_model(tiny).model
    with pytest.raises(ModelError, match=rf"oft.*{model.config.model_type}"):
        models.apply_method(model, method)
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50))
    for name in ("dora", "ia3", "layernorm-tuning"):
        with pytest.raises(ModelError, match=rf"{name}.*'gpt2'"):
            models.apply_method(gpt2, ALL[name])


def test_prefix_tuning_where_a_key_is_not_the_models_width_over_its_heads():
    config = transformers.T5Config(  # FLAN-T5-small's proportions: 512 / 6 is no whole number
        vocab_size=60, d_model=32, d_kv=4, d_ff=64, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    model = models.apply_method(transformers.T5ForConditionalGeneration(config), ALL["prefix-tuning"])
    assert models.count_parameters(model)["trainable_parameters"] == 20 * 2 * 2 * 3 * 4
    ids = torch.arange(5, 15)[None]
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=ids).logits.shape[1] == 10
