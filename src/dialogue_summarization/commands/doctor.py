"""`study doctor`: what this machine has, and what each experiment would need."""

import contextlib
import importlib.metadata
import platform
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import CacheNotFound

from .. import data, hardware, hub, packaged, runs
from ..errors import ConfigurationError, ModelError
from ..experiments import EXPERIMENTS, PACKAGED_MODEL, SAMPLE_DATA, Experiment
from .models import BASE_MODELS, BYTES_PER_PARAMETER, GIB

PACKAGES = (*runs.PACKAGES, "huggingface-hub", "safetensors", "bitsandbytes")
# Activations and libraries beside weights, gradients and optimizer: quickstart's full run took 5.4 GB in all on a CPU.
OTHER_MEMORY = 3 * GIB


def report(options: Namespace) -> None:
    """Print what there is, and what keeps each experiment from running; an error if the quickstart cannot run."""
    outputs = (options.outputs or runs.OUTPUTS).resolve()
    machine, hub_error, cached = hardware.describe(), hub.hub_error(), []
    with contextlib.suppress(CacheNotFound):
        cached = sorted(repository.repo_id for repository in huggingface_hub.scan_cache_dir().repos)
    installed = {one.name.replace("_", "-"): one.version for one in importlib.metadata.distributions()}
    versions = [f"{name} {installed[name]}" for name in PACKAGES if name in installed]
    rows = {
        "Device": f"{machine['device']} ({machine['system']})",
        "Memory": f"{machine['memory_bytes'] / GIB:.1f} GiB, free {hardware.free_memory() / GIB:.1f}",
        "Precision": f"{machine['precision']} ({hardware.precision_and_reason()[1]})",
        "Versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "Disk": f"{free_disk(outputs) / GIB:.1f} GiB free for {outputs}",
        "Hub": hub_error or f"{huggingface_hub.constants.ENDPOINT} answers",
        "Hub cache": f"{huggingface_hub.constants.HF_HUB_CACHE}: {', '.join(cached) or 'nothing'}",
        "Packaged model": _packaged_error() or f"{packaged.gguf().name}, converted into {packaged.cache()}",
    }
    for name, value in rows.items():
        print(f"{name + ':':16}{value}")
    reasons = {}
    for name, experiment in EXPERIMENTS.items():
        memory, disk = _memory_and_disk(experiment)
        reasons[name] = problems(experiment, outputs, hub_error, cached)
        print(f"\n{name}: {experiment.title}")
        print(f"  takes about {memory / GIB:.1f} GiB of memory with small batches, and {disk / GIB:.1f} GiB of disk")
        print("\n".join(f"  not here: {reason}" for reason in reasons[name]) or "  can run here")
    if reasons["quickstart"]:
        raise ConfigurationError(f"the quickstart cannot run: {' '.join(reasons['quickstart'])}")


def problems(experiment: Experiment, outputs: Path, hub_error: str | None, cached: Sequence[str]) -> list[str]:
    """Why an experiment cannot run here, a sentence per reason; `cached` are the repositories in the Hub's cache."""
    reasons = []
    for folder in (data.ROOT / "notebooks", data.ROOT / "data"):
        if not folder.is_dir():
            reasons.append(f"there is no folder {folder}: run `study` in a whole clone of the project.")
    if experiment.model == PACKAGED_MODEL and _packaged_error():
        reasons.append(_packaged_error())
    for name in (experiment.model, experiment.dataset):
        if hub_error and name not in (PACKAGED_MODEL, SAMPLE_DATA, *cached):
            reasons.append(f"{name} is not in the Hub's cache, and {hub_error}. Give a folder (--model, --dataset).")
    if experiment.name != "quickstart" and hardware.device().type == "cpu":
        reasons.append("it is meant for a GPU, and there is none.")
    memory, disk = _memory_and_disk(experiment)
    needs = {"memory": (memory, hardware.free_memory()), f"disk for {outputs}": (disk, free_disk(outputs))}
    for what, (needed, free) in needs.items():
        if free < needed:
            sizes = f"it takes about {needed / GIB:.1f} GiB of {what}, and {free / GIB:.1f} are free"
            reasons.append(f"{sizes}. Make room, or leave the run full out (--runs).")
    return reasons


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is or would be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.resolve().parents) if place.exists())).free


def _memory_and_disk(experiment: Experiment) -> tuple[float, float]:
    """Bytes for full fine-tuning; on disk base, result, checkpoints with AdamW's moments, and averaged weights."""
    base = BASE_MODELS.get(experiment.model.rpartition("/")[2], BASE_MODELS["SmolLM2-135M-Instruct"])
    settings = experiment.settings["full"]
    checkpoints = 3 if settings.epochs > 1 else 1  # the best, the last, and the one that is being written
    on_disk = 4 + 4 + 12 * checkpoints + 4 * settings.averaged_epochs
    return base.parameters * BYTES_PER_PARAMETER["full"] + OTHER_MEMORY, base.parameters * on_disk


def _packaged_error() -> str | None:
    try:
        packaged.gguf()
    except ModelError as error:
        return str(error)
