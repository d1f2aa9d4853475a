"""Tiny random models of both families with a tokenizer trained on the spot, tiny data, and what tests do with them."""

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, pre_tokenizers, processors, trainers
from torch.nn.functional import scaled_dot_product_attention

from dialogue_summarization import callbacks, data, models, training
from dialogue_summarization.acceleration import attention
from dialogue_summarization.acceleration import trainer as accelerated
from dialogue_summarization.acceleration.memory import BatchPlan
from dialogue_summarization.experiments import METHODS, Experiment, Generation, Settings

SHARED = Path(__file__).parents[2] / "shared"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PEOPLE = ["Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"]
THINGS = ["a red bike", "two lemons", "the old map", "a train ticket", "soup", "a violin", "her keys", "nine stamps"]


def tiny_rows(count, references=1, start=0):
    """Dialogues and summaries that differ from one another; not meant to be good English."""
    rows = []
    for number in range(start, start + count):
        who, what = PEOPLE[number % 8], THINGS[(number // 8 + number) % 8]
        dialogue = (
            f"#Person1#: Hello {who}, did you bring {what}?\n#Person2#: No, I left number {number} at home.\n"
            f"#Person1#: Then we have to wait until {number % 12 + 1} o'clock.\n#Person2#: I am sorry."
        )
        for reference in range(references):
            suffix = f"_{reference + 1}" if references > 1 else ""
            summary = f"{who} forgot {what}." if reference == 0 else f"{who} left {what} at home, number {number}."
            rows.append({"id": f"d_{number}{suffix}", "dialogue": dialogue, "summary": summary, "topic": "waiting"})
    return rows


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ENCODER_DECODERS = ("t5", "bart", "pegasus")
ARCHITECTURES = (*ENCODER_DECODERS, "llama", "qwen2", "qwen3")


def _tokenizer(family):
    special = ["<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [row["dialogue"] + row["summary"] for row in tiny_rows(30)] + [
        "summarize the following conversation:\nsummary: "
    ]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    if family in ENCODER_DECODERS:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    encoder_decoder = family in ENCODER_DECODERS
    eos = "</s>" if encoder_decoder else "<|im_end|>"
    # As in SmolLM2, the decoder-only tokenizer's pad token is its end token: masking must not depend on it.
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token="<pad>" if encoder_decoder else eos, unk_token="<unk>"
    )
    if not encoder_decoder:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_model(family, vocab_size=400, dropout=0.0, d_kv=8):
    torch.manual_seed(0)
    if family == "t5":
        config = transformers.T5Config(
            vocab_size=vocab_size, d_model=32, d_kv=d_kv, d_ff=64, num_layers=2, num_heads=4, dropout_rate=dropout,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0,
            eos_token_id=1,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        # FLAN-T5's head is its own, which T5Config no longer says in transformers 5: its weights decide. Scaled, as it
        # would start with standard deviation 1 otherwise, for a loss in the hundreds.
        head = model.shared.weight.detach().clone().normal_(std=config.d_model**-0.5)
        model.lm_head.weight = torch.nn.Parameter(head)
        return model
    if family in ENCODER_DECODERS:  # each with its own start of the decoder, as the Hub's configurations have it
        sizes = {
            f"{side}_{name}": size
            for side in ("encoder", "decoder")
            for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
        }
        config = transformers.AutoConfig.for_model(
            family, **sizes, vocab_size=vocab_size, d_model=32, max_position_embeddings=300, dropout=dropout,
            attention_dropout=dropout, activation_dropout=dropout, pad_token_id=0, bos_token_id=3, eos_token_id=1,
            forced_eos_token_id=1, decoder_start_token_id={"bart": 1, "pegasus": 0}[family],
            scale_embedding=family == "pegasus",
        )  # fmt: skip
        return transformers.AutoModelForSeq2SeqLM.from_config(config)
    config = transformers.AutoConfig.for_model(
        family, vocab_size=vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_dropout=dropout, pad_token_id=4, eos_token_id=4, bos_token_id=None,
        **({"head_dim": 16} if family == "qwen3" else {}),
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def save_tiny(family, folder):
    """A tiny random model of an architecture as `from_pretrained` reads it."""
    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(folder)
    tiny_model(family, len(tokenizer)).save_pretrained(folder)
    return folder


def tiny_experiment(model, dataset, **changes):
    fast = Settings(5e-3, epochs=2, batch_size=4, select_by="loss")
    base = Experiment(
        name="tiny", title="tiny", model=str(model), dataset=str(dataset), max_prompt_tokens=256,
        settings={"full": fast, "lora": replace(fast, learning_rate=2e-2)}, generation=Generation(max_new_tokens=12),
    )  # fmt: skip
    return replace(base, **changes)


def token_loss(bundle, rows):
    """The mean cross-entropy per summary token."""
    batch = bundle.family.collate(rows)
    shift = bundle.family.label_shift
    labels = batch.pop("labels")[:, shift:]  # PEFT would put its virtual tokens before them
    logits = bundle.model(**batch).logits
    return torch.nn.functional.cross_entropy(logits[:, : -shift or None].flatten(0, 1), labels.flatten())


def fit(bundle, method, rows, settings):
    """A model as a method trains it on encoded pairs, by a plain loop; with it, the loss of each step.

    For what is said of a method or an architecture: Trainer has tests of its own.
    """
    transformers.set_seed(0)
    bundle = replace(bundle, model=models.apply_method(bundle.model, method))
    rows, size = list(rows), settings.batch_size
    count = round(settings.epochs * -(-len(rows) // size))
    trained = [weight for weight in bundle.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, round(settings.warmup * count), count)
    losses, batches = [], []
    while len(losses) < count:
        if not batches:
            order = torch.randperm(len(rows)).tolist()
            batches = [[rows[place] for place in order[at : at + size]] for at in range(0, len(rows), size)]
        bundle.model.train()
        loss = token_loss(bundle, batches.pop())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    bundle.model.eval()
    return bundle, losses


def hold(monkeypatch, micro_batch, checkpointing=False):
    """A device that trains on so many dialogues at once."""

    def plan(settings, *_):
        return BatchPlan(micro_batch, settings.batch_size // micro_batch, checkpointing, 0)

    monkeypatch.setattr(accelerated, "plan", plan)


def with_data(experiment, folder, train, validation=None):
    """An experiment on other dialogues."""
    folder.mkdir()
    for split, rows in (("train", train), ("validation", validation or train), ("test", train)):
        write_jsonl(folder / f"{split}.jsonl", rows)
    return replace(experiment, dataset=str(folder))


def trainer_of(
    experiment, settings, folder, method=METHODS["full"], *, kind=training.SummarizationTrainer, seed=0, more=None,
    **arguments
):  # fmt: skip
    """A trainer for a freshly loaded model; `arguments` are TrainingArguments', `more` the trainer's own."""
    splits, bundle = data.load(experiment), models.load_model(experiment)
    transformers.set_seed(seed)
    bundle = replace(bundle, model=models.apply_method(bundle.model, method))
    return kind(
        bundle, settings, Generation(max_new_tokens=30), splits["validation"],
        args=training.training_arguments(settings, folder / "checkpoints", seed=seed, **arguments),
        train_dataset=training.encode_split(splits["train"], bundle.family),
        eval_dataset=training.encode_split(splits["validation"], bundle.family), **(more or {}),
    )  # fmt: skip


def attend_per_sequence(q, k, v, cu_seqlens_q, cu_seqlens_k, bias=None, **options):
    """PyTorch's attention, sequence by sequence, of (1, heads, tokens, head size)."""
    outputs = []
    bounds = zip(itertools.pairwise(cu_seqlens_q.tolist()), itertools.pairwise(cu_seqlens_k.tolist()), strict=True)
    for (q_start, q_end), (k_start, k_end) in bounds:
        if q_end > q_start:
            qkv = q[:, :, q_start:q_end], k[:, :, k_start:k_end], v[:, :, k_start:k_end]
            mask = None if bias is None else bias[:, :, : q_end - q_start, : k_end - k_start]
            outputs.append(scaled_dot_product_attention(*qkv, attn_mask=mask, enable_gqa=True, **options))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def attend_without_a_gpu(patch):
    """Put PyTorch's attention, one sequence after another, in the place of the kernels for packed rows."""

    def attend_to_packed(query, key, value, cu_seqlens, max_length, scale):
        return attend_per_sequence(query, key, value, cu_seqlens, cu_seqlens, is_causal=True, scale=scale)

    def attend_as_t5(q, k, v, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, dropout):
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if causal:
            bias = bias + torch.full((max_q, max_q), float("-inf")).triu(1)
        bias, options = bias if bias.numel() else None, {"dropout_p": dropout, "scale": 1.0}
        return attend_per_sequence(q, k, v, cu_seqlens_q, cu_seqlens_k, bias, **options)

    patch.setattr(attention, "attend_to_packed", attend_to_packed)
    patch.setattr(attention, "T5Attention", SimpleNamespace(apply=attend_as_t5), raising=False)


@contextlib.contextmanager
def as_if_compiled():
    """As on a GPU, with packed batches, but for kernels, compilation and graphs, which take one."""

    def without_compiling(model, name):
        if name:
            attention.set_attention(model, name)

    with pytest.MonkeyPatch.context() as patch:
        attend_without_a_gpu(patch)
        patch.setattr(accelerated, "steps_are_fast", lambda *_: True)
        patch.setattr(accelerated, "compile_model", without_compiling)
        patch.setattr(accelerated, "StepGraphs", lambda step, model: step)
        yield


def interrupt(patch, call):
    """Stop as Ctrl-C does, at a call of `training_step`; there is a checkpoint of every step."""
    usual, calls = training.SummarizationTrainer.training_step, itertools.count(1)

    def training_step(*some, **more):
        if next(calls) == call:
            raise KeyboardInterrupt
        return usual(*some, **more)

    patch.setattr(callbacks, "SECONDS_BETWEEN_CHECKPOINTS", 0)
    patch.setattr(training.SummarizationTrainer, "training_step", training_step)


def run_cells(name, until, **parameters):
    """What the code cells of a notebook define, run here with these parameters up to the cell that has a text."""
    notebook = nbformat.read(data.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = {}
    for number, source in enumerate(cells[1:]):  # the first one installs
        exec(source, names)
        if number == 0:
            assert parameters.keys() <= names.keys()
            names.update(parameters)
        if until in source:
            return names
    raise AssertionError(f"no cell of {name} has {until!r}")
