"""Run an experiment's notebooks, and copy them for a class. Imports that are slow wait for options that can be used."""

import importlib.util
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import experiments
from ..errors import ConfigurationError
from ..experiments import EXPERIMENTS, PACKAGED_MODEL, STUDY_RUNS, Experiment, Method
from ..ranks import require_one_process
from ..settings import TRACKERS
from .models import BASE_MODELS

if TYPE_CHECKING:
    import datasets

NOTEBOOKS = ("01_zero_shot", "02_full_fine_tuning", "03_lora", "04_evaluation")
MADE_BY = {"zero-shot": NOTEBOOKS[0], "full": NOTEBOOKS[1]}  # the other runs of the study: NOTEBOOKS[2]


def run_experiment(options: Namespace) -> None:
    """Make the runs, by the notebooks that teach them, and print their results. Raises many kinds of `UserError`."""
    require_one_process()
    methods = experiments.methods(options.runs)
    names = [method.name for method in methods]
    experiment = asked_experiment(options.command, options, names)
    if options.report_to:
        report_to(options.report_to)
    print(f"{experiment.name}: {', '.join(names)}", flush=True)
    from .. import data
    from ..disk import lock_run, unlock
    from . import execution

    outputs = (options.outputs or data.OUTPUTS).resolve()
    folder, source = outputs / experiment.name, data.ROOT / "notebooks"
    if not source.exists():
        raise ConfigurationError(f"There is no folder {source}: run `study` in a clone of the project.")
    # Errors here, not in a notebook: bad data, a model that cannot learn from it, a run that another process is making,
    # hours on a CPU.
    execution.require_runtime_folder()
    splits = data.load(experiment)
    if experiment.model != PACKAGED_MODEL:
        _try_to_encode(experiment, splits)
    for method in methods:
        unlock(lock_run(folder / method.name / f"seed-{options.seed}.partial"))
        is_made = (folder / method.name / f"seed-{options.seed}" / "metrics.json").exists()
        if experiment.name != "quickstart" and (options.force or not is_made):  # that takes minutes anywhere
            from .. import study

            study.require_time(experiment, method, {split: len(rows) for split, rows in splits.items()})
    if options.gpus != 1:
        _make_in_processes(experiment, methods, options, outputs)
        options.force = False  # the notebooks load what the processes made
    for method in methods:
        if method.name not in STUDY_RUNS:  # no notebook makes it; the last one compares it
            make_runs(experiment, [method], options.seed, outputs, options.force)

    parameters = {"EXPERIMENT": options.command, "LIMIT": options.limit, "SEED": options.seed, "FORCE": options.force}
    parameters |= {"MODEL": options.model and experiment.model, "DATASET": options.dataset and experiment.dataset}
    parameters |= {"OUTPUTS": options.outputs and str(outputs), "SETTINGS": list(experiment.changes)}
    defaults = ("quickstart", ",".join(EXPERIMENTS["quickstart"].runs))
    taught = [name for name in names if name in STUDY_RUNS]
    notebooks = sorted({MADE_BY.get(name, NOTEBOOKS[2]) for name in taught} | {NOTEBOOKS[3]})
    sources = {}
    for notebook in notebooks:
        given = parameters | {"RUNS": ",".join(names if notebook == NOTEBOOKS[3] else taught)}
        sources[source / f"{notebook}.ipynb"] = {
            name: value for name, value in given.items() if value and value not in defaults
        }
    changes = {"model": parameters["MODEL"], "dataset": parameters["DATASET"], "limit": options.limit}
    changes |= {"settings": parameters["SETTINGS"], "runs": names}
    ending = (
        f"from {__name__} import print_results\nprint_results{(options.command, changes, options.seed, str(outputs))}"
    )
    print(f"\n{execution.execute(sources, folder / 'notebooks', ending)}")
    print(f"To open: {folder / 'notebooks' / notebooks[-1]}.html\nRecords of the runs: {folder}")


def print_results(name: str, changes: Mapping[str, Any], seed: int, outputs: str) -> None:
    """Print the results of an experiment's runs that were just made, and what they say of one dialogue."""
    from .. import data, report, runs

    experiment = experiments.experiment(name, **changes)
    made = [run for run in runs.collect(experiment.name, outputs) if run.name in changes["runs"]]
    made = [run for run in made if run.config.seed == seed]
    test = data.load(experiment)["test"]
    print(report.results(made).to_string(), report.signature(test), report.example(made, test), sep="\n\n")


def asked_experiment(name: str, options: Namespace, runs: Sequence[str], settings: Sequence[str] = ()) -> Experiment:
    """The experiment of that name with the model, data, limit and settings that a command line asks for."""
    model, dataset = _absolute(options.model), _absolute(options.dataset)
    if model in BASE_MODELS:
        model = BASE_MODELS[model].hub_id
    settings = [*(options.set or ()), *settings]
    experiment = experiments.experiment(
        name, model=model, dataset=dataset, limit=options.limit, settings=settings, runs=runs
    )
    named = {text.partition("=")[0].rpartition(".")[0] for text in experiment.changes} - {"", *runs}
    if named:
        raise ConfigurationError(f"--set changes {min(named)}, which is not asked for: {', '.join(runs)}.")
    return experiment


def report_to(names: str) -> None:
    """Have trainings report to these trackers, here and in processes that are started. Raises `ConfigurationError`."""
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in TRACKERS:
            raise ConfigurationError(f"--report-to {name}: allowed are {', '.join(TRACKERS)}.")
        if name != "none" and importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"--report-to {name}: the package is missing. `uv pip install {name}` installs it."
            )
    os.environ["STUDY_REPORT_TO"] = ",".join(chosen)


def _try_to_encode(experiment: Experiment, splits: "datasets.DatasetDict") -> None:
    from .. import models

    _, family = models.load_tokenizer(models.local_snapshot(experiment.model), experiment)
    for rows in (splits["train"], splits["validation"]):
        several = zip(rows["dialogue"], rows["summaries"], strict=True)
        family.encode_all(*zip(*((dialogue, text) for dialogue, texts in several for text in texts), strict=True))
    family.encode_all(splits["test"]["dialogue"])


def _absolute(source: str | None) -> str | None:
    is_folder = source is not None and Path(source).expanduser().is_dir()
    return str(Path(source).expanduser().resolve()) if is_folder else source  # notebooks run elsewhere


def _make_in_processes(experiment: Experiment, methods: Sequence[Method], options: Namespace, outputs: Path) -> None:
    from .. import models
    from ..acceleration.trainer import per_process_batch_size
    from ..distributed import processes

    if options.gpus < 1:
        raise ConfigurationError(f"--gpus takes 1 or more, not {options.gpus}.")
    for settings in filter(None, map(experiment.settings_for, methods)):
        per_process_batch_size(settings.batch_size, options.gpus)
    models.local_snapshot(experiment.model)  # downloaded, or converted, once
    processes.launch(options.gpus, make_runs, experiment, methods, options.seed, outputs, options.force)


def make_runs(experiment: Experiment, methods: Sequence[Method], seed: int, outputs: Path, force: bool) -> None:
    """Make runs without notebooks, in this process or in each of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from ..distributed import study
    else:
        from .. import study

    for method in methods:
        study.run(experiment, method, seed, outputs=outputs, force=force)


def copy_for_class(options: Namespace) -> None:
    """Write the notebooks into a folder, without outputs and without the answers to their exercises."""
    import nbformat
    from nbconvert.preprocessors import ClearOutputPreprocessor

    from ..data import ROOT
    from ..disk import require_writable

    if options.folder.exists():
        raise ConfigurationError(f"{options.folder} is there already. Name a new folder.")
    require_writable(options.folder, "Name another folder.")
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
        for cell in notebook.cells:
            cell.source = re.sub(r"\s*<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        nbformat.write(notebook, options.folder / source.name)
        print(options.folder / source.name)
