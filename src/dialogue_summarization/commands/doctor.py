"""`study doctor`: what this machine has, and which experiments it can run."""

import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import constants

from .. import hardware, hub, packaged, runs
from ..disk import require_writable
from ..errors import ConfigurationError, UserError
from ..experiments import EXPERIMENTS, PACKAGED_MODEL, SAMPLE_DATA, Experiment
from ..ranks import require_one_process
from .execution import require_runtime_folder
from .models import BASE_MODELS

OTHER_GB = 3.2  # beside parameters, gradients and optimizer: the quickstart's full run took 5.3 GB in all on a CPU
CUDA_TORCH = "uv pip install --reinstall torch --torch-backend=auto, then uv run --no-sync study"


def report(options: Namespace) -> None:
    """Print what there is, and what keeps each experiment from running; an error if the quickstart cannot run."""
    outputs = (options.outputs or runs.OUTPUTS).resolve()
    machine, hub_error = runs.environment(), hub.go_offline_if_silent()
    cached = ["/".join(path.name.split("--")[1:]) for path in sorted(Path(constants.HF_HUB_CACHE).glob("*--*"))]
    place = next(place for place in (outputs, *outputs.parents) if place.exists())
    disk = shutil.disk_usage(place)
    print(f"Device:         {machine['device']} ({machine['system']})")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        print(f"                NVIDIA GPU found, torch built without CUDA: {CUDA_TORCH}")
    print(f"Memory:         {machine['memory_bytes'] / 1e9:.1f} GB, free {hardware.free_memory() / 1e9:.1f}")
    print(f"Precision:      {machine['precision']} ({hardware.precision_and_reason()[1]})")
    print(f"Versions:       {', '.join(f'{name} {machine[name]}' for name in ('python', *runs.PACKAGES))}")
    print(f"Disk:           {disk.free / 1e9:.1f} GB free for {outputs}")
    print(f"Hub:            {hub_error or 'it answers'}; in {constants.HF_HUB_CACHE}: {', '.join(cached) or 'nothing'}")
    print(f"Packaged model: {_error(packaged.gguf) or f'{packaged.gguf().name}, converted into {packaged.cache()}'}")
    checks = (require_one_process, require_runtime_folder, packaged.require_cache, partial(require_writable, place))
    of_all = [error for error in map(_error, checks) if error]
    reasons = {}
    for name, experiment in EXPERIMENTS.items():
        reasons[name] = [*of_all, *problems(experiment, hub_error, cached)]
        print(f"\n{name}: {experiment.title}")
        print("\n".join(f"  not here: {reason}" for reason in reasons[name]) or "  can run here")
    if reasons["quickstart"]:
        raise ConfigurationError(f"the quickstart cannot run: {' '.join(reasons['quickstart'])}")


def problems(experiment: Experiment, hub_error: str | None, cached: Sequence[str]) -> list[str]:
    """Why an experiment cannot run here, a sentence per reason; `cached` are the repositories in the Hub's cache."""
    missing = _error(packaged.gguf) if experiment.model == PACKAGED_MODEL else None
    reasons = [missing] if missing else []
    for name in (experiment.model, experiment.dataset):
        if hub_error and name not in (PACKAGED_MODEL, SAMPLE_DATA, *cached):
            reasons.append(f"{name} is not in the Hub's cache, and {hub_error}. Give a folder (--model, --dataset).")
    if experiment.name != "quickstart" and hardware.device().type == "cpu":
        reasons.append("it is meant for a GPU, and there is none.")
    base = BASE_MODELS.get(experiment.model.rpartition("/")[2], BASE_MODELS["SmolLM2-135M-Instruct"])
    needed, free = base.gb("full") + OTHER_GB, hardware.free_memory() / 1e9
    if free < needed:
        advice = "Leave full out: --runs zero-shot,lora-balanced."
        reasons.append(f"it takes about {needed:.1f} GB of memory, and {free:.1f} are free. {advice}")
    return reasons


def _error(check: Callable[[], object]) -> str | None:
    try:
        check()
    except UserError as error:
        return str(error)
