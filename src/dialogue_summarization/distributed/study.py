"""`study.run` by several processes: all train and generate, the main process alone prepares, scores and writes."""

from functools import partial
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from .. import data, hardware, runs, study
from ..experiments import Experiment, Method
from ..generation import summarize
from .processes import all_reduce, split_between_processes


def run(
    experiment: Experiment, method: Method, seed: int = 0, *, outputs: str | Path = runs.OUTPUTS, force: bool = False
) -> runs.Run:
    """See `study.run`; all processes call it."""
    if PartialState().is_main_process:
        prepared = study.prepare(experiment, method, seed, outputs=outputs, force=force)
    else:
        prepared = study.plan_run(experiment, method, seed, outputs)
    is_made = any(gather_object([prepared.record is not None]))
    if not is_made and prepared.needs_training:
        _train(prepared)
    if not is_made:
        _finish(prepared)
    return runs.read(prepared.folder)


def _train(prepared: study.PreparedRun) -> None:
    validation = data.drop_near_duplicates(prepared.splits["validation"], prepared.splits["train"])
    trainer = study.make_trainer(prepared, validation)
    trainer.train(resume_from_checkpoint=prepared.checkpoint)
    weights = trainer.whole_weights()
    if PartialState().is_main_process:
        prepared.save(trainer, weights)
    PartialState().wait_for_everyone()


def _finish(prepared: study.PreparedRun) -> None:
    bundle = study.load_trained(prepared)
    generate = partial(summarize, bundle, generation=prepared.generation)
    with hardware.Meter() as meter:
        texts = split_between_processes(generate, list(prepared.splits["test"]["dialogue"]))
    meter.joules, meter.peak_bytes = all_reduce(sum, meter.joules), all_reduce(max, meter.peak_bytes)
    if PartialState().is_main_process:
        environment, size = runs.environment(), PartialState().num_processes
        environment |= {"device": f"{size} x {environment['device']}", "processes": size}
        study.record(prepared, bundle, texts, meter, environment)
    PartialState().wait_for_everyone()
