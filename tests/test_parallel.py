"""Two processes make the run that one makes, and say what happened when one of them does not."""

import json
import signal

import datasets
import pandas as pd
import pytest
import torch
import two_processes
from conftest import tiny_rows, write_jsonl
from safetensors.torch import load_file

from dialogue_summarization import (
    base_models,
    benchmark,
    cli,
    execution,
    experiments,
    figures,
    fitting,
    hardware,
    measured,
    models,
    parallel,
    processes,
    runs,
    scaling,
    study,
    throughput,
)
from dialogue_summarization.trainer_parts import GroupedByLength


@pytest.fixture(scope="module")
def places(tiny_models, tmp_path_factory):
    """Models, data and a folder: 17 dialogues are 8 steps of 2 and one, of which one process gets nothing."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "data").mkdir()
    splits = {"train": tiny_rows(17), "validation": tiny_rows(5, start=17), "test": tiny_rows(5, 3, 30)}
    for split, rows in splits.items():
        write_jsonl(folder / "data" / f"{split}.jsonl", rows)
    return tiny_models["llama"], tiny_models["t5"], folder / "data", folder


def line(llama, dataset, folder):
    return [*two_processes.LINE, "--model", str(llama), "--dataset", str(dataset), "--outputs", str(folder / "two")]


@pytest.fixture(scope="module")
def said(places):
    """What the command says when one of its processes is killed; runs that were finished before are kept."""
    with pytest.raises(processes.ProcessFailed) as raised:
        processes.launch(2, [two_processes.__file__, *map(str, places)])
    return str(raised.value)


def same(ours, theirs):
    """Two records say the same within rounding, but for seconds and memory."""
    assert (ours.config.key, list(ours.predictions["prediction"])) == (
        theirs.config.key, list(theirs.predictions["prediction"])
    )  # fmt: skip
    pd.testing.assert_frame_equal(ours.log.drop(columns="seconds"), theirs.log.drop(columns="seconds"), rtol=1e-5)
    pd.testing.assert_frame_equal(ours.likelihood, theirs.likelihood, atol=2e-4)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "parameters", "trainable_parameters"):
        assert ours.metrics[name] == theirs.metrics[name]
    found, wanted = (load_file(next(run.weights.glob("*.safetensors"))) for run in (ours, theirs))
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


def of_one(chosen, method, folder):
    return study.run(chosen, experiments.method(method), outputs=folder / "one")


def read(folder):
    (found,) = folder.glob("*/full/seed-0")
    return runs.read(found)


def test_a_killed_process_is_named_and_the_same_command_finishes(places, said, monkeypatch, capfd):
    llama, _, dataset, folder = places
    assert "Process 2 of 2 was ended by SIGKILL" in said and "same command goes on" in said
    notebooks, handler = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(execution, "execute", lambda source, folder, told: notebooks.append(source.stem))
    assert cli.main(line(llama, dataset, folder)) == 0
    assert notebooks == ["02_full_fine_tuning", "03_lora", "04_evaluation"]
    assert signal.getsignal(signal.SIGINT) == handler
    assert capfd.readouterr().out.count("full: going on from checkpoint-") == 1  # the first process alone prints
    chosen = experiments.experiment("smollm2-dialogsum", model=str(llama), dataset=str(dataset))
    for method in ("full", "lora-balanced"):
        run = runs.read(folder / "two" / chosen.name / method / "seed-0")
        same(run, of_one(chosen, method, folder))
        assert run.environment["processes"] == 2 and run.environment["device"].startswith("2 x CPU")
        assert not [path for path in run.folder.parent.iterdir() if path != run.folder]
    assert "processes" not in runs.environment()


def test_gradients_averaged_behind_a_step_are_those_of_one_process(places, said):
    llama, _, dataset, folder = places
    with two_processes.as_if_compiled():
        one = of_one(two_processes.experiment(llama, dataset), "full", folder / "compiled")
    same(read(folder / "compiled"), one)


def test_sharded_training_is_that_of_one_process_and_leaves_a_whole_model(places, said):
    _, t5, dataset, folder = places
    chosen = two_processes.experiment(t5, dataset)
    run = read(folder / "sharded")
    same(run, of_one(chosen, "full", folder))
    assert models.reload(chosen, run.weights).network.num_parameters() == models.load(chosen).network.num_parameters()


@pytest.mark.parametrize("rows, processes_", [(17, 2), (16, 2), (33, 4), (3, 4)])
def test_every_step_has_the_same_dialogues_whatever_the_processes(monkeypatch, rows, processes_):
    monkeypatch.setenv("WORLD_SIZE", str(processes_))
    batch = 8 // processes_
    lengths = [10 + 7 * number % 13 for number in range(rows)]
    filled = [*lengths, *[0] * (-rows % 8)]
    order = GroupedByLength(0, 8, lengths)
    dealt = list(parallel.DealtOut(GroupedByLength(0, 8, lengths), filled, batch))
    assert len(dealt) == len(filled) and sorted(dealt) == list(range(len(filled)))
    wanted = [*order, *range(rows, len(filled))]
    for start in range(0, len(filled), 8):
        step = dealt[start : start + 8]
        assert set(step) == set(wanted[start : start + 8])
        tokens = [sum(filled[row] for row in step[at : at + batch]) for at in range(0, 8, batch)]
        assert max(tokens) - min(tokens) <= max(filled[row] for row in step)


@pytest.mark.parametrize("multiple, wanted", [(3, 6), (4, 8), (6, 6)])
def test_rows_that_learn_nothing_fill_a_multiple_up_and_no_more(multiple, wanted):
    pairs = [{"input_ids": [5, 6, number], "labels": [number], "length": 4} for number in range(6)]
    found = list(parallel.filled(datasets.Dataset.from_list(pairs), multiple))
    assert found == pairs + [{"input_ids": [5], "labels": [], "length": 0}] * (wanted - 6)


def test_a_batch_that_cannot_be_divided_is_said_at_once(capsys):
    assert cli.main(["quickstart", "--gpus", "3", "--runs", "full"]) == 1
    assert "1 dialogues cannot be divided among 3 processes" in capsys.readouterr().err
    assert processes.share(32, 8) == 4


def test_training_that_no_device_holds_is_found(monkeypatch):
    network = torch.nn.Linear(1000, 1000, bias=False)  # 16 MB to train
    monkeypatch.setattr(hardware, "memory", lambda: 21_000_000)
    assert hardware.holds_training(network)
    monkeypatch.setattr(hardware, "memory", lambda: 19_000_000)
    assert not hardware.holds_training(network)
    assert hardware.holds_training(network.requires_grad_(False))


@pytest.mark.parametrize(("rows", "filled"), [(8, 8), (5, 8)])
def test_rows_that_learn_nothing_make_up_a_multiple(rows, filled):
    some = datasets.Dataset.from_list([{"input_ids": [5, 6], "labels": [7], "length": 3, "truncated": False}] * rows)
    found = parallel.filled(some, 4)
    assert len(found) == filled and found.features == some.features and list(found)[:rows] == list(some)
    assert all(row["labels"] == [] and row["input_ids"] == [5] for row in list(found)[rows:])


def test_the_benchmark_measures_the_same_training_by_two(places, said):
    llama, _, dataset, folder = places
    two_processes.measure(llama, dataset, folder / "measured")
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in (folder / "measured").glob("*.json")}
    names = ("smollm2-full-plain", "smollm2-lora", "t5-xl-full")
    assert set(found) == {
        *names, *(f"{name}-gpus2" for name in (*names, "generate-beams1")), "generate-beams1",
        "smollm2-full-plain-batch2",
    }  # fmt: skip
    for name in names:
        one, two = found[name], found[f"{name}-gpus2"]
        assert len(one["losses"]) == {"smollm2-full-plain": 12}.get(name, 6)
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert [one["gpus"], two["gpus"], one["sharded"], two["sharded"]] == [1, 2, False, name == "t5-xl-full"]
        assert len(one["peak_memory_bytes_each"]) == 1 and len(two["peak_memory_bytes_each"]) == 2
        assert one["parameters"] == two["parameters"] and one["batch_size"] == two["batch_size"] == 4
        assert "all_reduce_milliseconds" not in one
        assert ("all_reduce_milliseconds" in two) == (not two["sharded"])
    compared = scaling.comparisons(measured.records(folder / "measured"))
    assert [each.several["name"] for each in compared] == [f"{name}-gpus2" for name in names]
    assert [each.predicted is None for each in compared] == [False, True, True]
    table = scaling.measured(compared)
    assert list(table["GPUs"]) == [2, 2, 2] and list(table["predicted"] == "–") == [False, True, True]
    assert len(figures.several_gpus(compared).axes[0].get_yticklabels()) == 3


def test_memory_that_a_capped_card_lacks_is_recorded(places, monkeypatch, tmp_path):
    def build(name, method):
        raise hardware.NotEnoughMemory("Out of memory at step 1: not one dialogue can be trained on.")

    monkeypatch.setattr(throughput, "build", build)
    benchmark.main(["t5-xl-full", "--dataset", str(places[2]), "--outputs", str(tmp_path)])
    found = json.loads((tmp_path / "t5-xl-full.json").read_text("utf-8"))
    assert found["failed"].startswith("NotEnoughMemory: Out of memory at step 1") and found["gib"] == 42


def test_an_xl_is_sharded_between_two_cards_of_42_gib_and_fits(monkeypatch):
    with torch.device("meta"):
        network = throughput.t5("t5-xl")
    assert network.num_parameters() == base_models.BASE_MODELS["flan-t5-xl"].parameters
    monkeypatch.setattr(hardware, "memory", lambda: 42 * hardware.GIB)
    monkeypatch.setattr(hardware, "device", lambda: torch.device("cuda"))
    assert not parallel.is_sharded(network, experiments.method("full"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.is_sharded(network, experiments.method("full"))
    rows = datasets.Dataset.from_list([{"input_ids": [5] * 512, "labels": [5] * 180, "length": 692}] * 8)
    whole, half = fitting.fits(4, network, rows), fitting.fits(4, network, rows, parts=2)
    assert whole.bytes > 42 * hardware.GIB
    assert half.bytes < 42 * hardware.GIB and half.micro_batch * half.accumulation == 4 and not half.checkpointing


def test_scaling_by_hand():
    link, network = scaling.Link("a", 100), scaling.Link("b", 10)
    assert scaling.all_reduce_seconds(10**9, 1, link) == 0
    assert scaling.all_reduce_seconds(10**9, 2, link) == pytest.approx(0.010)
    assert scaling.all_reduce_seconds(10**9, 8, link) == pytest.approx(0.0175)
    assert scaling.efficiency(0.030, 10**9, 2, link) == pytest.approx(0.75)
    found = scaling.table(0.030, 10**9, link, network, a_machine=2)
    assert found == pytest.approx({
        "2 GPUs": 1.5, "4 GPUs": 4 * 30 / 45, "8 GPUs": 8 * 30 / 47.5, "2 machines of 2": 4 * 30 / 180
    })  # fmt: skip


def test_measured_speed_beside_the_predicted_by_hand():
    common = {
        "device": "a card",
        "model": "smollm2",
        "method": "full",
        "fast": True,
        "sharded": False,
        "trainable_parameters": 250 * 10**6,
    }
    common |= {"peak_memory_bytes_each": [scaling.GIB]}
    records = {
        "a": {"gpus": 1, "batch_size": 32, "samples_per_second": 400.0, "step_milliseconds": 80.0, "losses": [2, 1.5]},
        "a-batch16": {"gpus": 1, "batch_size": 16, "samples_per_second": 320.0, "step_milliseconds": 50.0},
        # 10^9 bytes over 2 GPUs at 40 GB/s: 25 ms behind a step of 50 ms.
        "a-gpus2": {"gpus": 2, "batch_size": 32, "samples_per_second": 420.0, "step_milliseconds": 76.2,
                    "all_reduce_milliseconds": 25.0, "bus_gigabytes": 40.0, "losses": [2.25, 1.5]},
        "a-plain": {"gpus": 1, "batch_size": 32, "samples_per_second": 40.0, "step_milliseconds": 800.0, "fast": False},
    }  # fmt: skip
    records = {name: common | {"name": name} | record for name, record in records.items()}
    (found,) = scaling.comparisons(records)
    assert found.times == pytest.approx(1.05)
    assert found.predicted == pytest.approx(2 * 320 * 50 / 75)
    assert scaling.bus_gigabytes(10**9, 2, 0.025) == pytest.approx(40)
    row = scaling.measured([found]).iloc[0]
    assert list(row[["predicted", "share alone, ms", "exchange, ms", "peak GiB each"]]) == [
        "427",
        "50.0",
        "25.00",
        "1.0",
    ]
    assert scaling.sentences([found]) == [
        "SmolLM2-135M, full, fast: 2 GPUs are 1.05 times as fast as one; losses differ by 0.2500 nats at most. A GPU's "
        "share alone takes 50.0 ms, the whole batch 80.0: with nothing to exchange 1.60 times were the most. With the "
        "exchange 1.07 times are predicted, of which 98% are reached."
    ]

    def said(**changed):
        (each,) = scaling.comparisons({name: records[name] | changed.get(name, {}) for name in ("a", "a-gpus2")})
        assert each.predicted is None
        return scaling.measured([each]).iloc[0]["samples/s on one"], *scaling.sentences([each])

    assert said()[1].endswith("Nothing is predicted: a step of one GPU's share was not measured.")
    del records["a"]["samples_per_second"]
    lacks = {"gib": 42, "failed": "NotEnoughMemory: no"}
    assert said(a=lacks, **{"a-gpus2": {"gib": 42, "sharded": True}}) == (
        "out of memory",
        "SmolLM2-135M, full, FSDP: 42 GiB of one GPU do not hold it; 2 GPUs train on 420 samples a second.",
    )
    (alone,) = scaling.comparisons({"a-gpus2": records["a-gpus2"]})
    assert scaling.sentences([alone]) == ["SmolLM2-135M, full, fast: not measured on one GPU."]
    assert scaling.measured([alone]).iloc[0]["times"] == "–" and scaling.measured([]).empty
