"""Run an experiment's notebooks. Imports that are slow wait for options that can be used."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .. import experiments
from ..errors import ConfigurationError
from ..experiments import EXPERIMENTS, PACKAGED_MODEL, STUDY_RUNS, Experiment, Method
from ..ranks import require_one_process
from ..settings import require_seed
from .models import BASE_MODELS

NOTEBOOKS = ("01_zero_shot", "02_full_fine_tuning", "03_lora", "04_evaluation")
MADE_BY = {"zero-shot": NOTEBOOKS[0], "full": NOTEBOOKS[1]}  # the other runs of the study: NOTEBOOKS[2]


def run_experiment(options: Namespace) -> None:
    """Make the runs, by the notebooks that teach them, and print their results. Raises many kinds of `UserError`."""
    require_one_process()
    methods = experiments.methods(options.runs)
    names = [method.name for method in methods]
    experiment = asked_experiment(options.command, options, names)
    print(f"{experiment.name}: {', '.join(names)}", flush=True)
    from .. import data
    from . import execution

    outputs, source = (options.outputs or data.OUTPUTS).resolve(), data.ROOT / "notebooks"
    if not source.exists():
        raise ConfigurationError(f"There is no folder {source}: run `study` in a clone of the project.")
    execution.require_runtime_folder()
    _require_usable(experiment, methods, options, outputs)
    taught = [name for name in names if name in STUDY_RUNS]
    others = [method for method in methods if method.name not in STUDY_RUNS]
    if options.gpus > 1:
        from ..distributed import processes

        processes.launch(options.gpus, make_runs, experiment, methods, options.seed, outputs, options.force)
        options.force = False  # the notebooks load what the processes made
    if others:  # no notebook makes them; the last one compares them
        make_runs(experiment, others, options.seed, outputs, options.force)

    given = {"EXPERIMENT": options.command, "LIMIT": options.limit, "SEED": options.seed, "FORCE": options.force}
    given |= {"MODEL": options.model and experiment.model, "DATASET": options.dataset and experiment.dataset}
    given |= {"OUTPUTS": options.outputs and str(outputs), "SETTINGS": list(experiment.changes)}
    defaults = ("quickstart", ",".join(EXPERIMENTS["quickstart"].runs))
    sources = {}
    for notebook in sorted({MADE_BY.get(name, NOTEBOOKS[2]) for name in taught} | {NOTEBOOKS[3]}):
        parameters = given | {"RUNS": ",".join(names if notebook == NOTEBOOKS[3] else taught)}
        parameters = {name: value for name, value in parameters.items() if value and value not in defaults}
        sources[source / f"{notebook}.ipynb"] = parameters
    folder, shown = outputs / experiment.name, (experiment.name, names, options.seed, str(outputs))
    ending = f"from {__name__} import print_results\nprint_results{shown}"
    printed = execution.execute(sources, folder / "notebooks", ending)
    print(f"\n{printed}\nTo open: {folder / 'notebooks' / NOTEBOOKS[3]}.html\nRecords of the runs: {folder}")


def _require_usable(experiment: Experiment, methods: Sequence[Method], options: Namespace, outputs: Path) -> None:
    """Raise errors here, not in a notebook.

    Of bad data, a model that cannot learn from it, a run that another process is making, and hours on a CPU.
    """
    from .. import data
    from ..disk import lock_run, unlock

    splits = data.load(experiment)
    if experiment.model != PACKAGED_MODEL:
        from .. import models, training

        _, family = models.load_tokenizer(models.local_snapshot(experiment.model), experiment)
        for split in ("train", "validation"):
            training.encode_split(splits[split], family)
        family.encode_all(splits["test"]["dialogue"])
    for method in methods:
        folder = outputs / experiment.name / method.name / f"seed-{options.seed}"
        unlock(lock_run(folder.with_name(f"{folder.name}.partial")))
        is_made = (folder / "metrics.json").exists()
        if experiment.name != "quickstart" and (options.force or not is_made):  # that takes minutes anywhere
            from .. import study

            study.require_time(experiment, method, {split: len(rows) for split, rows in splits.items()})
    if options.gpus < 1:
        raise ConfigurationError(f"--gpus takes 1 or more, not {options.gpus}.")
    if options.gpus > 1:
        from .. import models
        from ..acceleration.trainer import per_process_batch_size

        for settings in filter(None, map(experiment.settings_for, methods)):
            per_process_batch_size(settings.batch_size, options.gpus)
        models.local_snapshot(experiment.model)  # downloaded, or converted, once


def print_results(experiment: str, names: Sequence[str], seed: int, outputs: str) -> None:
    """Print the results of an experiment's runs that were just made, and what they say of one dialogue."""
    from .. import report, runs

    made = [run for run in runs.collect(experiment, outputs) if run.name in names and run.config.seed == seed]
    test = runs.load_data(made[0], made[0].config.dataset)["test"]
    print(report.results(made).to_string(), report.signature(test), report.example(made, test), sep="\n\n")


def asked_experiment(name: str, options: Namespace, runs: Sequence[str], settings: Sequence[str] = ()) -> Experiment:
    """The experiment of that name with the model, data, limit and settings that a command line asks for."""
    require_seed(options.seed)
    model, dataset = _absolute(options.model), _absolute(options.dataset)
    if model in BASE_MODELS:
        model = BASE_MODELS[model].hub_id
    changes = {"model": model, "dataset": dataset, "limit": options.limit}
    experiment = experiments.experiment(name, **changes, settings=[*(options.set or ()), *settings], runs=runs)
    named = {text.partition("=")[0].rpartition(".")[0] for text in experiment.changes} - {"", *runs}
    if named:
        raise ConfigurationError(f"--set changes {min(named)}, which is not asked for: {', '.join(runs)}.")
    return experiment


def _absolute(source: str | None) -> str | None:
    is_folder = source is not None and Path(source).expanduser().is_dir()
    return str(Path(source).expanduser().resolve()) if is_folder else source  # notebooks run elsewhere


def make_runs(experiment: Experiment, methods: Sequence[Method], seed: int, outputs: Path, force: bool) -> None:
    """Make runs without notebooks, in this process or in each of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..distributed import study
    else:
        from .. import study

    for method in methods:
        study.run(experiment, method, seed, outputs=outputs, force=force)
