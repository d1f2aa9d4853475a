"""What the machine has: its device, the precision that is right on it, the time and memory that code takes."""

import contextlib
import ctypes
import gc
import math
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import safetensors
import torch
import transformers

from .errors import NotEnoughMemory

GIB = 1 << 30
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP16_MODELS = ("llama", "mistral")  # SmolLM2 learns as well in fp16; the others overflow, or were not tried
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_CPU_ONLY = os.environ.get("STUDY_DEVICE") == "cpu"  # `study --device cpu`
if _CPU_ONLY:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before CUDA starts


def device() -> torch.device:
    """One GPU where there is one (several only when asked for), else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() and not _CPU_ONLY else "cpu")


def precision() -> str:
    """What the device computes in natively, `bf16`, else `fp16`, else `fp32`; weights are trained in fp32 anyway."""
    return precision_and_reason()[0]


def precision_for(model: torch.nn.Module) -> str:
    """`precision`; but fp16 for the architectures in `FP16_MODELS` alone: T5 overflows (transformers issue 14189)."""
    name = precision()
    return "fp32" if name == "fp16" and model.config.model_type not in FP16_MODELS else name


def precision_and_reason() -> tuple[str, str]:
    """The precision, and why."""
    kind = device().type
    if kind == "cuda":  # torch.cuda.is_bf16_supported() also says yes where bf16 is only emulated (T4)
        major, minor = torch.cuda.get_device_capability()
        name = "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
        reason = f"compute capability {major}.{minor}; bf16 needs 8.0 (Ampere) or newer"
        return name, reason + ("; only Llama and Mistral models use fp16" if name == "fp16" else "")
    if kind == "mps":
        return "fp32", "an Apple GPU"
    # AMD since Zen 4 and Intel's servers, through oneDNN, which would emulate bf16 on other CPUs.
    is_native = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("bf16", "the CPU has AVX512-BF16") if is_native else ("fp32", "the CPU has no AVX512-BF16")


def autocast(model: torch.nn.Module) -> torch.autocast:
    """Compute in `precision_for` the model."""
    dtype = DTYPES[precision_for(model)]
    return torch.autocast(device().type, dtype, enabled=dtype != torch.float32)


def describe() -> dict[str, str | int]:
    """The device by name, its memory in bytes, the precision and the system."""
    name, memory = f"{device().type.upper()}, {torch.get_num_threads()} threads", psutil.virtual_memory().total
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties().total_memory
    system = f"{platform.system()} {platform.machine()}"
    return {"device": name, "memory_bytes": memory, "precision": precision(), "system": system}


def free_memory() -> int:
    """Bytes that can still be allocated: on the GPU where there is one, else of the machine."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def require_memory(folder: str | Path) -> None:
    """Stop before loading weights that cannot fit: raise `NotEnoughMemory`."""
    needed = 0
    for path in Path(folder).glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            needed += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    remedy = "close other programs and notebooks' kernels, or take a smaller model: quickstart needs about 5 GB"
    _require(needed, free_memory(), f"The model in {folder}", f"here: {remedy}")


def _require(needed: int, free: int, what: str, remedy: str) -> None:
    if needed > free:
        raise NotEnoughMemory(f"{what} takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free {remedy}.")


def require_room(trained: int, folder: Path, copies: int) -> None:
    """Stop before a training whose gradients and AdamW's moments a CPU has no memory for, or whose files do not fit.

    `copies` of the trained weights go to `folder`, where some may be already. Raises `NotEnoughMemory`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # of an earlier sitting
    less = "or train an adapter (lora-balanced) or a smaller model"
    free_disk = shutil.disk_usage(folder).free + there
    _require(4 * trained * copies, free_disk, "Training", f"in {folder}: name another (--outputs), {less}")
    if device().type == "cpu":
        remedy = f"in memory: close other programs and notebooks' kernels, {less}"
        _require(12 * trained, free_memory(), "Training", remedy)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory where a CPU computes: by default every large block is returned and cleared anew."""
    if device().type == "cpu" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_MAX, 0)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


class Meter:
    """What a `with` block takes: `seconds`, `peak_bytes` of memory, `joules` of the GPU; the last two None if unknown.

    Memory is the GPU's, else the process's: on Linux the kernel keeps its peak (VmHWM) and resets it on request. What
    was freed before the block is returned to the system first, or a second run would be charged for the first one's.
    Energy is the GPU's own counter (Volta and newer), other programs on it included: `uv sync --extra energy`.
    """

    seconds: float
    peak_bytes: int | None = None
    joules: float | None = None
    _has_linux_peak = False

    def __enter__(self) -> "Meter":
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            gc.collect()
            with contextlib.suppress(AttributeError):  # not every C library has it
                ctypes.CDLL(None).malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self._has_linux_peak = True
        self._start_joules, self._start = _gpu_joules(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        if device().type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated()
        elif self._has_linux_peak:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.peak_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        if self._start_joules is not None:
            self.joules = round(_gpu_joules() - self._start_joules, 1)

    def costs(self, work: str) -> dict[str, float]:
        """What is known, as records keep it."""
        costs = {"seconds": round(self.seconds, 2), "joules": self.joules, "memory_bytes": self.peak_bytes}
        return {f"{work}_{name}": value for name, value in costs.items() if value is not None}


def _gpu_joules() -> float | None:
    """Since the driver was loaded; None without a GPU, permission or NVIDIA's management library."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # By UUID: with CUDA_VISIBLE_DEVICES, CUDA's numbers are not the library's.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device()).uuid}")
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    except Exception:
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own progress bars and warnings."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
