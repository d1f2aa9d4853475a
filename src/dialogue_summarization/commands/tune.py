"""`study tune`: train a run at several learning rates, score each on validation, and name the best.

Each rate is the run that `study --set` makes with it, up to the test split, which is not touched: the chosen one needs
no second training.
"""

import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace

import datasets
import pandas as pd
from matplotlib.figure import Figure

from .. import data, experiments, figures, generation, report, runs, study
from ..disk import unlock, write_csv
from ..errors import ConfigurationError, TrainingDiverged
from ..evaluation.statistics import compare
from ..intervals import interval
from ..prepared import PreparedRun
from ..rouge import score_dialogues
from ..training import SummarizationTrainer
from .notebooks import asked_experiment

MEASURES = ["rouge1", "rouge2", "rougeL"]  # a rate is chosen by their mean
FEWEST = 10  # dialogues that can tell two rates apart


def tune(options: Namespace) -> None:
    """Tune a run, print a table and what it says, and write both a table and a figure. Raises `UserError`."""
    run = experiments.method(options.run)
    if not run.is_trained:
        raise ConfigurationError(f"{run.name} trains nothing: it has no learning rate.")
    chosen = [f"{run.name}.learning_rate={rate.strip()}" for rate in options.learning_rate.split(",")]
    tried = [asked_experiment(options.experiment, options, [run.name], [setting]) for setting in chosen]
    by_rate = {one.settings_for(run).learning_rate: one for one in tried}
    if len(by_rate) < 2:
        given = f"--learning-rate {options.learning_rate}"
        raise ConfigurationError(f"{given}: allowed are two rates or more, as 5e-4,1e-3.")
    outputs, base = options.outputs or runs.OUTPUTS, asked_experiment(options.experiment, options, [run.name])
    splits = data.load(base)
    validation = data.drop_near_duplicates(splits["validation"], splits["train"])
    scores = {}
    for rate, one in sorted(by_rate.items()):
        print(f"\n{run.name}, learning rate {rate:g}:", flush=True)
        try:
            scores[rate] = score_rate(study.prepare(one, run, options.seed, outputs=outputs), validation)
        except TrainingDiverged as error:
            print(error)
    if not scores:
        raise ConfigurationError("Training diverged at every rate: try lower ones.")
    table, place = results(scores), outputs / base.name / f"tune-{run.name}"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_csv(place.with_suffix(".csv"), table.reset_index())
    draw(scores, run.name).savefig(place.with_suffix(".png"), dpi=110)
    rate, said = verdict(scores, sorted(by_rate))
    print(f"\n{table.to_string()}\n\n{said}\nGreedy summaries, seed {options.seed}. Test was not touched.")
    print(f"Table and figure: {place}.csv, {place}.png")
    setting = f" --set {by_rate[rate].changes[-1]}" if by_rate[rate] != base else ""
    print(f"To use it: study {options.experiment} --runs {run.name}{setting}, with the options that you gave here.")


def score_rate(prepared: PreparedRun, validation: datasets.Dataset) -> pd.DataFrame:
    """ROUGE of each validation dialogue, from where it is kept or by training what is not trained yet."""
    path = (prepared.folder if prepared.record else prepared.tmp_dir) / "validation.csv"
    if prepared.needs_training:
        trainer = study.make_trainer(prepared, validation)
        scores = train_and_score(trainer, prepared.checkpoint)
        prepared.save(trainer)
        shutil.rmtree(prepared.checkpoints, ignore_errors=True)
        write_csv(path, scores)
    elif not path.exists():
        bundle, greedy = study.load_trained(prepared), replace(prepared.generation, num_beams=1)
        texts = generation.summarize(bundle, list(validation["dialogue"]), greedy)
        write_csv(path, score_dialogues(texts, validation["summaries"]))
    unlock(prepared.lock)
    return pd.read_csv(path)


def train_and_score(trainer: SummarizationTrainer, checkpoint: str | None = None) -> pd.DataFrame:
    """Train, and score greedy summaries of the trainer's validation dialogues, a row each. Raises what `train` does."""
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.generation = replace(trainer.generation, num_beams=1)
    texts = trainer.summaries(list(trainer.validation["dialogue"]))
    return score_dialogues(texts, trainer.validation["summaries"])


def results(scores: Mapping[float, pd.DataFrame]) -> pd.DataFrame:
    """A row per rate: ROUGE with 95 % intervals over dialogues, and how far its mean is from the best one's."""
    means, rows = _means(scores), []
    top = max(means.values(), key=pd.Series.mean)
    for rate, table in scores.items():
        row = {"learning rate": f"{rate:g}"}
        for name in MEASURES:
            row[report.HEADINGS[name]] = report.with_interval(table[name].mean(), interval(table[name]))
        gap = compare(means[rate], top)
        over = "best" if means[rate] is top else report.with_interval(gap.mean, (gap.low, gap.high), "+.3f")
        rows.append(row | {"mean": f"{means[rate].mean():.3f}", "over the best": over})
    return pd.DataFrame(rows).set_index("learning rate")


def verdict(scores: Mapping[float, pd.DataFrame], rates: Sequence[float]) -> tuple[float, str]:
    """The best rate, and what can be said of it. `rates` are all that were tried, rising, diverged ones too."""
    means = _means(scores)
    best, dialogues = max(means, key=lambda rate: means[rate].mean()), len(next(iter(means.values())))
    said = [f"Best on {dialogues} validation dialogues, by the mean of ROUGE-1, -2 and -L: {best:g}."]
    others = [rate for rate in means if rate != best]
    near = [rate for rate in others if dialogues < FEWEST or compare(means[best], means[rate]).low <= 0]
    if near:
        listed = ", ".join(f"{rate:g}" for rate in near)
        said.append(f"Within noise of it: {listed}. More validation dialogues tell more.")
    elif others:
        said.append("The others are worse by more than noise (the intervals exclude 0).")
    if best in (rates[0], rates[-1]):
        end, beyond = ("lowest", best / 2) if best == rates[0] else ("highest", best * 2)
        said.append(f"It is the {end} that was tried: a better one may lie beyond. Try {beyond:g} too.")
    return best, "\n".join(said)


def draw(scores: Mapping[float, pd.DataFrame], name: str) -> Figure:
    """The mean of ROUGE over the learning rates, with 95 % intervals over dialogues."""
    figure, (ax,) = figures.panels()
    means = _means(scores)
    middle = [mean.mean() for mean in means.values()]
    ends = [[abs(mean.mean() - end) for end in interval(mean)] for mean in means.values()]
    ax.errorbar(list(means), middle, yerr=list(zip(*ends, strict=True)), marker="o", color="#1b3a6b", capsize=4)
    ax.set(xscale="log", xlabel="learning rate", ylabel="mean of ROUGE-1, -2 and -L")
    ax.set_title(f"{name} on validation, 95 % intervals")
    return figure


def _means(scores: Mapping[float, pd.DataFrame]) -> dict[float, pd.Series]:
    return {rate: table[MEASURES].mean(axis=1) for rate, table in scores.items()}
