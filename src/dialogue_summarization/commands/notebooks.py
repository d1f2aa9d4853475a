"""Run an experiment's notebooks from the command line, and copy the notebooks for a class.

Slow imports stand in the functions, so that an option that cannot be used is reported at once.
"""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import experiments
from ..errors import ConfigurationError, UserError
from ..experiments import STUDY_RUNS, Experiment, Method
from .models import hub_id

NOTEBOOKS = ("01_zero_shot", "02_full_fine_tuning", "03_lora", "04_evaluation")
MADE_BY = {"zero-shot": NOTEBOOKS[0], "full": NOTEBOOKS[1]}  # the other runs of the study: NOTEBOOKS[2]


def run_experiment(options: Namespace) -> None:
    """Make the runs, by the notebooks that teach them, and print their results. Raises many kinds of `UserError`."""
    names = [name.strip() for name in options.runs.split(",") if name.strip()]
    methods = [experiments.method(name) for name in names]
    model, dataset = hub_id(_absolute(options.model)), _absolute(options.dataset)
    changes = {"model": model, "dataset": dataset, "limit": options.limit}
    experiment = experiments.experiment(options.command, **changes)

    from .. import data, report, runs, study
    from ..prepared import lock_run, unlock

    outputs = (options.outputs or runs.OUTPUTS).resolve()
    folder, source = outputs / experiment.name, data.ROOT / "notebooks"
    if not source.exists():
        raise ConfigurationError(f"There is no folder {source}: run `study` in a clone of the project.")
    # Errors here, not in a notebook: bad data, and a run that another process is making.
    test = data.load(experiment)["test"]
    for name in names:
        unlock(lock_run(folder / name / f"seed-{options.seed}.partial"))
    if options.gpus != 1:
        _train_in_several_processes(experiment, methods, options, outputs)
        options.force = False  # the notebooks load what the processes made

    print(f"{experiment.name}: {', '.join(names)}")
    for method in methods:
        if method.name not in STUDY_RUNS:  # no notebook makes it; the last one compares it
            study.run(experiment, method, options.seed, outputs=outputs, force=options.force)
    parameters = {"MODEL": model, "DATASET": dataset, "LIMIT": options.limit, "SEED": options.seed}
    parameters |= {"FORCE": options.force, "OUTPUTS": str(outputs) if options.outputs else None}
    parameters["EXPERIMENT"] = options.command if options.command != "quickstart" else None
    taught = [name for name in names if name in STUDY_RUNS]
    for notebook in sorted({MADE_BY.get(name, NOTEBOOKS[2]) for name in taught} | {NOTEBOOKS[3]}):
        shown = names if notebook == NOTEBOOKS[3] else taught
        parameters["RUNS"] = ",".join(shown) if shown != list(STUDY_RUNS) else None
        changed = {name: value for name, value in parameters.items() if value}  # None, 0 and False are the defaults
        execute(source / f"{notebook}.ipynb", folder / "notebooks", changed)

    made = [run for run in runs.collect(experiment.name, outputs) if run.name in names]
    made = [run for run in made if run.config.seed == options.seed]
    print(f"\n{report.results(made).to_string()}\n\n{report.signature(test)}")
    print(f"Model: {experiment.model}. Device: {made[0].environment['device']}.")
    print(f"\nExecuted notebooks, each with an HTML copy: {_relative(folder / 'notebooks')}")
    print(f"Records of the runs:                        {_relative(folder)}")


def _train_in_several_processes(
    experiment: Experiment, methods: Sequence[Method], options: Namespace, outputs: Path
) -> None:
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
    """Make the runs without notebooks, in each of several processes."""
    from ..distributed import study

    for method in methods:
        study.run(experiment, method, seed, outputs=outputs, force=force)


def _absolute(source: str | None) -> str | None:
    """A folder's absolute path, since notebooks run elsewhere; a Hub id or None as it is."""
    is_folder = source is not None and Path(source).expanduser().is_dir()
    return str(Path(source).expanduser().resolve()) if is_folder else source


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def execute(source: Path, folder: Path, parameters: Mapping[str, object]) -> None:
    """Run a notebook from a fresh kernel and keep it, failed or not, executed and as HTML. Raises `UserError`."""
    import nbformat
    import papermill
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    progress_bar = {"desc": source.stem, "bar_format": "{desc:22}{bar:30} {n_fmt}/{total_fmt} cells {elapsed}"}
    kernel = {"kernel_name": "python3", "cwd": str(source.parent)}
    kernel["extra_arguments"] = ["--IPKernelApp.log_level=40"]  # its note on TCP would break the progress bar
    try:
        papermill.execute_notebook(str(source), str(target), dict(parameters), progress_bar=progress_bar, **kernel)
    except papermill.PapermillExecutionError as error:
        raise UserError(
            f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\nThe notebook as far as "
            f"it came: {_relative(target)}. What was finished is kept; the same command goes on."
        ) from error
    finally:
        if target.exists():
            notebook = nbformat.read(target, as_version=4)
            CoalesceStreamsPreprocessor().preprocess(notebook, {})  # keeps of each progress bar its last state
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

    copies = {source: options.folder / source.name for source in sorted((ROOT / "notebooks").glob("*.ipynb"))}
    for target in copies.values():
        if target.exists():
            raise ConfigurationError(f"{target} is there already: name another folder, or remove it.")
    options.folder.mkdir(parents=True, exist_ok=True)
    for source, target in copies.items():
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"\s*<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        nbformat.write(notebook, target)
        print(target)
