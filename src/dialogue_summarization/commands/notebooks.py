"""Run an experiment's notebooks, and copy them for a class. Imports that are slow wait for options that can be used."""

import os
import re
import threading
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from .. import experiments
from ..errors import ConfigurationError
from ..experiments import EXPERIMENTS, PACKAGED_MODEL, STUDY_RUNS, Experiment, Method
from ..ranks import require_one_process
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
    model, dataset = _absolute(options.model), _absolute(options.dataset)
    if model in BASE_MODELS:
        model = BASE_MODELS[model].hub_id
    experiment = experiments.experiment(options.command, model=model, dataset=dataset, limit=options.limit)

    print(f"{experiment.name}: {', '.join(names)}", flush=True)
    from .. import data
    from ..disk import lock_run, unlock
    from . import execution

    outputs = (options.outputs or data.OUTPUTS).resolve()
    folder, source = outputs / experiment.name, data.ROOT / "notebooks"
    if not source.exists():
        raise ConfigurationError(f"There is no folder {source}: run `study` in a clone of the project.")
    # Errors here, not in a notebook: bad data, a model that cannot learn from it, a run that another process is making.
    execution.require_runtime_folder()
    splits = data.load(experiment)
    test = splits["test"]
    if experiment.model != PACKAGED_MODEL:
        _try_to_encode(experiment, splits)
    for name in names:
        unlock(lock_run(folder / name / f"seed-{options.seed}.partial"))
    if options.gpus != 1:
        _make_in_processes(experiment, methods, options, outputs)
        options.force = False  # the notebooks load what the processes made
    for method in methods:
        if method.name not in STUDY_RUNS:  # no notebook makes it; the last one compares it
            make_runs(experiment, [method], options.seed, outputs, options.force)

    parameters = {"EXPERIMENT": options.command, "MODEL": model, "DATASET": dataset, "LIMIT": options.limit}
    parameters |= {"SEED": options.seed, "FORCE": options.force, "OUTPUTS": options.outputs and str(outputs)}
    defaults = ("quickstart", ",".join(EXPERIMENTS["quickstart"].runs))
    taught = [name for name in names if name in STUDY_RUNS]
    notebooks = sorted({MADE_BY.get(name, NOTEBOOKS[2]) for name in taught} | {NOTEBOOKS[3]})
    sources = {}
    for notebook in notebooks:
        given = parameters | {"RUNS": ",".join(names if notebook == NOTEBOOKS[3] else taught)}
        sources[source / f"{notebook}.ipynb"] = {
            name: value for name, value in given.items() if value and value not in defaults
        }
    threading.Thread(target=_tables, daemon=True).start()  # importing them takes seconds: meanwhile
    execution.execute(sources, folder / "notebooks")
    report, runs = _tables()
    made = [run for run in runs.collect(experiment.name, outputs) if run.name in names]
    made = [run for run in made if run.config.seed == options.seed]
    print(f"\n{report.results(made).to_string()}\n\n{report.signature(test)}\n\n{report.example(made, test)}")
    print(f"\nTo open: {folder / 'notebooks' / notebooks[-1]}.html\nRecords of the runs: {folder}")


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


def _tables() -> tuple[ModuleType, ModuleType]:
    from .. import report, runs

    return report, runs


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
