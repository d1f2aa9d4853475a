"""Run an experiment's notebooks, and copy them for a class. Imports that are slow wait for options that can be used."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import experiments
from ..errors import ConfigurationError, UserError
from ..experiments import STUDY_RUNS, Experiment, Method
from .models import BASE_MODELS

NOTEBOOKS = ("01_zero_shot", "02_full_fine_tuning", "03_lora", "04_evaluation")
MADE_BY = {"zero-shot": NOTEBOOKS[0], "full": NOTEBOOKS[1]}  # the other runs of the study: NOTEBOOKS[2]


def run_experiment(options: Namespace) -> None:
    """Make the runs, by the notebooks that teach them, and print their results. Raises many kinds of `UserError`."""
    names = [name.strip() for name in options.runs.split(",") if name.strip()]
    methods = [experiments.method(name) for name in names]
    model, dataset = _absolute(options.model), _absolute(options.dataset)
    if model in BASE_MODELS:
        model = BASE_MODELS[model].hub_id
    experiment = experiments.experiment(options.command, model=model, dataset=dataset, limit=options.limit)

    from .. import data, report, runs, study
    from ..acceleration.trainer import per_process_batch_size
    from ..distributed import processes
    from ..prepared import lock_run, unlock

    outputs = (options.outputs or runs.OUTPUTS).resolve()
    folder = outputs / experiment.name
    # Errors here, not in a notebook: bad data, and a run that another process is making.
    test = data.load(experiment)["test"]
    for name in names:
        unlock(lock_run(folder / name / f"seed-{options.seed}.partial"))
    if options.gpus > 1:
        for settings in filter(None, map(experiment.settings_for, methods)):
            per_process_batch_size(settings.batch_size, options.gpus)
        processes.launch(options.gpus, make_runs, experiment, methods, options.seed, outputs, options.force)
        options.force = False  # the notebooks load what the processes made
    print(f"{experiment.name}: {', '.join(names)}")
    for method in methods:
        if method.name not in STUDY_RUNS:  # no notebook makes it; the last one compares it
            study.run(experiment, method, options.seed, outputs=outputs, force=options.force)
    parameters = {"EXPERIMENT": options.command, "MODEL": model, "DATASET": dataset, "LIMIT": options.limit}
    parameters |= {"SEED": options.seed, "FORCE": options.force, "OUTPUTS": options.outputs and str(outputs)}
    defaults = ("quickstart", ",".join(STUDY_RUNS), None, 0, False)
    taught = [name for name in names if name in STUDY_RUNS]
    for notebook in sorted({MADE_BY.get(name, NOTEBOOKS[2]) for name in taught} | {NOTEBOOKS[3]}):
        parameters["RUNS"] = ",".join(names if notebook == NOTEBOOKS[3] else taught)
        changed = {name: value for name, value in parameters.items() if value not in defaults}
        execute(data.ROOT / "notebooks" / f"{notebook}.ipynb", folder / "notebooks", changed)

    made = runs.collect(experiment.name, outputs)
    made = [run for run in made if run.name in names and run.config.seed == options.seed]
    print(f"\n{report.results(made).to_string()}\n\n{report.signature(test)}")
    print(f"Records of the runs, and executed notebooks with HTML copies: {folder}")


def _absolute(source: str | None) -> str | None:
    is_folder = source is not None and Path(source).expanduser().is_dir()
    return str(Path(source).expanduser().resolve()) if is_folder else source  # notebooks run elsewhere


def make_runs(experiment: Experiment, methods: Sequence[Method], seed: int, outputs: Path, force: bool) -> None:
    """Make the runs without notebooks, in each of several processes."""
    from ..distributed import study

    for method in methods:
        study.run(experiment, method, seed, outputs=outputs, force=force)


def execute(source: Path, folder: Path, parameters: Mapping[str, object]) -> None:
    """Run a notebook from a fresh kernel and keep it, failed or not, executed and as HTML. Raises `UserError`."""
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    kernel = {"kernel_name": "python3", "cwd": source.parent}
    kernel["extra_arguments"] = ["--IPKernelApp.log_level=40"]  # its note on TCP would break the progress bar
    shown = {"progress_bar": {"desc": source.stem}, "coalesce_streams": True}  # of a cell's own bars the last state
    try:
        papermill.execute_notebook(source, target, parameters, **kernel, **shown)
    except papermill.PapermillExecutionError as error:
        what = f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}"
        kept = f"The notebook as far as it came: {target}. What was finished is kept; the same command goes on."
        raise UserError(f"{what}\n{kept}") from error
    finally:
        if target.exists():
            notebook = nbformat.read(target, as_version=4)
            for part in (notebook, *notebook.cells):
                for name in ("papermill", "execution", "widgets"):
                    part.metadata.pop(name, None)
            nbformat.write(notebook, target)
            html, _ = HTMLExporter().from_notebook_node(notebook)
            target.with_suffix(".html").write_text(html, encoding="utf-8", newline="\n")


def copy_for_class(options: Namespace) -> None:
    """Write the notebooks into a folder, without outputs and without the answers to their exercises."""
    import nbformat
    from nbconvert.preprocessors import ClearOutputPreprocessor

    from ..data import ROOT

    if options.folder.exists():
        raise ConfigurationError(f"{options.folder} is there already. Name a new folder.")
    options.folder.mkdir(parents=True)
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
        for cell in notebook.cells:
            cell.source = re.sub(r"\s*<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        nbformat.write(notebook, options.folder / source.name)
        print(options.folder / source.name)
