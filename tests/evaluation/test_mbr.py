"""Minimum Bayes risk: the choice by hand and by a plain double loop, draws by their seed, the record of a tiny run."""

from collections import Counter

import pytest
import torch
from helpers import tiny_experiment, tiny_rows
from rouge_score import rouge_scorer

from dialogue_summarization import data, experiments, models, rouge, runs, study
from dialogue_summarization.disk import write_json
from dialogue_summarization.errors import ConfigurationError, DataError
from dialogue_summarization.evaluation import mbr, results
from dialogue_summarization.evaluation.mbr import mbr_utility
from dialogue_summarization.experiments import Generation
from dialogue_summarization.generation import summarize

WIDE = {"epsilon_cutoff": 0.0}
SHORT = Generation(max_new_tokens=6)
SCORER = rouge.scorer(mbr.MEAN_OF)


def by_double_loop(texts):
    """Each text against every other, by rouge_score's own stemming tokenizer."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    totals = []
    for number, text in enumerate(texts):
        scores = [scorer.score(other, text) for at, other in enumerate(texts) if at != number]
        totals.append(sum(part.fmeasure for score in scores for part in score.values()) / 3 / len(scores))
    return totals


def test_agreement_by_hand():
    """`a b` and `a b c`: ROUGE-1 and -L 2 x 1 x 2/3 / (1 + 2/3) = 4/5, ROUGE-2 2 x 1 x 1/2 / (1 + 1/2) = 2/3."""
    near = (4 / 5 + 2 / 3 + 4 / 5) / 3
    assert mbr_utility(["a b", "a b c", "x y"], SCORER) == pytest.approx([near / 2, near / 2, 0])
    # `c b a` shares the words of `a b c` but neither their pairs nor their order (1 of 3): (1 + 0 + 1/3) / 3.
    assert mbr_utility(["a b c", "c b a"], SCORER) == pytest.approx([4 / 9, 4 / 9])


def test_the_choice_is_what_most_others_are_like_and_repeats_count():
    several = ["Ann waits.", "Ben sells a bike.", "Ben sells a red bike.", "Ben bought a bike."]
    assert mbr.select(several, SCORER) == "Ben sells a bike."
    assert mbr.select(["Ben sells a bike.", "Ben sold bikes.", "Ann waits.", "Ann waits."], SCORER) == "Ann waits."
    assert mbr.select(["one", "two", "three"], SCORER) == "one"
    assert mbr.select(["", "", "Ann waits for Ben.", "Ann waited for Ben."], SCORER) == "Ann waits for Ben."


def test_agreement_is_in_words_of_any_script_and_the_data_decide_which():
    texts = ["Аня ушла.", "Борис продал велосипед.", "Борис продал красный велосипед."]
    assert mbr.select(texts, rouge.scorer_for([texts], mbr.MEAN_OF)) != "Аня ушла."
    texts = ["Zoë sells", "Zoö sells", "x"]
    cut, whole = mbr_utility(texts, SCORER), mbr_utility(texts, rouge.scorer_for([texts], mbr.MEAN_OF))
    assert cut[0] == pytest.approx((1 + 1 + 1) / 3 / 2) and whole[0] == pytest.approx((1 / 2 + 0 + 1 / 2) / 3 / 2)


def test_the_choice_is_that_of_a_plain_double_loop():
    generator = torch.Generator().manual_seed(0)
    words = [word for row in tiny_rows(12, 2) for word in row["summary"].split()]
    for size in (2, 5, 16):
        for _ in range(5):
            lengths = torch.randint(0, 12, (size,), generator=generator).tolist()
            texts = [
                " ".join(words[at] for at in torch.randint(0, len(words), (n,), generator=generator)) for n in lengths
            ]
            expected = by_double_loop(texts)
            assert mbr_utility(texts, SCORER) == pytest.approx(expected)
            assert expected[texts.index(mbr.select(texts, SCORER))] == pytest.approx(max(expected))


def test_draws_are_seeded_and_belong_to_their_dialogues(tiny):
    bundle, dialogues = models.load_model(tiny), [row["dialogue"] for row in tiny_rows(3)]
    first = mbr.sample(bundle, dialogues, SHORT, WIDE, 4, seed=1)
    assert [len(several) for several in first] == [4, 4, 4]
    assert len({text for several in first for text in several}) > 6
    assert mbr.sample(bundle, dialogues, SHORT, WIDE, 4, seed=1) == first
    assert mbr.sample(bundle, dialogues, SHORT, WIDE, 4, seed=2) != first
    greedy = summarize(bundle, dialogues, SHORT, progress=False)
    cold = mbr.sample(bundle, dialogues, SHORT, {"temperature": 1e-4}, 3)
    assert cold == [[text] * 3 for text in greedy]


def test_tokens_are_drawn_as_likely_as_the_model_finds_them_but_none_below_epsilon(tiny):
    """Counted: no hidden limit to the likeliest 50, and epsilon cuts where it should."""
    bundle, dialogue = models.load_model(tiny), "Ann: Hi."  # short: it is read for every draw
    batch = bundle.family.collate([bundle.family.encode(dialogue)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if bundle.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[bundle.model.config.decoder_start_token_id]])
    with torch.no_grad():
        logits = bundle.model(**inputs).logits[0, -1]
        bundle.model.get_output_embeddings().weight.div_(logits.std())  # neither alike nor one of them certain
        likely = bundle.model(**inputs).logits[0, -1].softmax(-1)
    texts = [bundle.tokenizer.decode([token], skip_special_tokens=True).strip() for token in range(len(likely))]

    def expected(sampling):
        kept = torch.where(likely >= sampling["epsilon_cutoff"], likely, 0)
        of = Counter()
        for text, chance in zip(texts, (kept / kept.sum()).tolist(), strict=True):
            of[text] += chance
        return {text: chance for text, chance in of.items() if chance > 0}

    epsilon = likely.sort(descending=True).values[99:101].mean().item()  # 100 are likelier
    for sampling in (WIDE, {"epsilon_cutoff": epsilon}):
        [drawn] = mbr.sample(bundle, [dialogue], Generation(max_new_tokens=1), sampling, 4_000)
        chances, counts = expected(sampling), Counter(drawn)
        assert 50 < len(counts) <= len(chances) and set(counts) <= set(chances)
        for text, chance in chances.items():
            assert abs(counts[text] / 4_000 - chance) < 5 * (chance / 4_000) ** 0.5 + 0.001
    assert len(expected(WIDE)) > 2 * len(chances)


@pytest.fixture(scope="module")
def run(tiny_models, tiny_data, tmp_path_factory):
    """A tiny trained Llama that writes by beams."""
    experiment = tiny_experiment(tiny_models["llama"], tiny_data, generation=Generation(max_new_tokens=12, num_beams=2))
    return study.run(experiment, experiments.method("full"), outputs=tmp_path_factory.mktemp("outputs"))


SETTINGS = {"temperature": 2.0, "epsilon_cutoff": 0.001}


def test_the_record_holds_the_scores_and_results_show_it(run, tiny_data):
    test = data.load_source(str(tiny_data))["test"]
    assert "minimum Bayes risk" not in results.text([run], test)
    rows = mbr.dialogues_of(run, str(tiny_data), "test")
    assert list(rows["id"]) == list(test["id"])
    texts, found = mbr.decode(run, study.load_run(run), rows, "test", 4, SETTINGS)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for written, scores in ((texts, found), (run.predictions["prediction"].tolist(), found["own"])):
        for name in ("rouge1", "rouge2", "rougeL"):
            each = [
                scorer.score(reference, text)[name].fmeasure
                for text, several in zip(written, test["summaries"], strict=True)
                for reference in several
            ]
            assert scores[name] == pytest.approx(sum(each) / 15, abs=1e-6)
            assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    assert found["over_own"]["rougeL"] == pytest.approx(found["rougeL"] - found["own"]["rougeL"], abs=2e-6)
    assert (found["key"], found["samples"], found["temperature"], found["epsilon"]) == (run.config.key, 4, 2.0, 0.001)
    assert 1 < found["distinct_samples"] <= 4 and "threads" in found["device"]
    runs.write_predictions(run.folder / "mbr-4.csv", rows["id"], texts)
    write_json(run.folder / "mbr-4.json", found)
    shown = results.text([run], test)
    [line] = [line for line in shown.splitlines() if f" {found['over_own']['rougeL']:+.3f} [" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["full", "4"] and f"{found['rougeL']:.3f} [" in line
    assert cells[-1] == found["device"] and "optimizes the measure" in shown
    assert mbr.decode(run, study.load_run(run), rows, "test", 4, SETTINGS)[0] == texts  # the same draws again
    assert runs.read(run.folder).config.key == run.config.key  # still a record


def test_settings_are_tried_on_validation(run, tiny_data):
    rows = mbr.dialogues_of(run, str(tiny_data), "validation")
    _, found = mbr.decode(run, study.load_run(run), rows, "validation", 4, SETTINGS, seed=3)
    splits = data.load_source(str(tiny_data))
    assert (found["split"], found["seed"]) == ("validation", 3)
    assert found["dialogues"] == len(data.drop_near_duplicates(splits["validation"], splits["train"]))
    assert "validation" not in " ".join(results.by_minimum_bayes_risk([run]).astype(str).to_numpy().ravel())


def test_other_data_than_the_runs_is_an_error(run):
    with pytest.raises(DataError, match="not the data that"):
        mbr.dialogues_of(run, "sample", "test")


def test_a_record_without_weights_says_how_to_make_them():
    run = runs.read(runs.OUTPUTS / "reference" / "quickstart" / "full" / "seed-0")
    test = data.load(experiments.experiment("quickstart"))["test"]
    with pytest.raises(ConfigurationError, match="weights"):
        mbr.decode(run, study.load_run(run), test, "test", 4, SETTINGS)
