"""What the machine has: its device, the precision that is right on it, its memory."""

import contextlib
import ctypes
import gc
import importlib.util
import math
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import safetensors
import torch
import transformers

from .memory import CONTEXT, GIB

# Operations a second in fp32, as cards without bf16 compute here, by the vendor's data sheets: nvidia.com/t4, and for
# GeForce the white paper "Turing GPU Architecture", appendix.
FP32_RATES = {"GeForce RTX 2060, 6 GB": 6.5e12, "T4, 16 GB": 8.1e12}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


class NotEnoughMemory(RuntimeError):
    """The model does not fit; the message says what was needed and what there is."""


def device() -> torch.device:
    """One GPU where there is one (several only when asked for), else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision() -> str:
    """`bf16` where the card or CPU computes in it, otherwise `fp32`; weights are trained in fp32 in either case.

    Compute capability 8 (Ampere) brought bf16; `torch.cuda.is_bf16_supported()` also says yes where it is only emulated
    (T4). Of CPUs those with AVX512-BF16 do (AMD since Zen 4, Intel's servers), through oneDNN, which would emulate it
    on others. fp16 is never chosen: T5 overflows in it (transformers issue 14189).
    """
    kind = device().type
    if kind == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        native = kind == "cuda" and torch.cuda.get_device_capability()[0] >= 8
    return "bf16" if native else "fp32"


def fast_steps() -> bool:
    """Whether the steps of module `fast` run here: an Ampere card or newer, and Triton to compile for it."""
    return device().type == "cuda" and precision() == "bf16" and importlib.util.find_spec("triton") is not None


def writes_over_a_fixed_cache() -> bool:
    """Whether summaries are written over a cache of fixed size: for graphs, and since a CPU copies slowly."""
    return fast_steps() or device().type == "cpu"


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next, where a CPU computes.

    By itself it returns large blocks at once and the kernel clears every page anew: 40 summaries of SmolLM2 took 47 s,
    and 32 s so (2 cores).
    """
    if sys.platform == "linux" and device().type == "cpu" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def clock() -> float:
    """`time.perf_counter`, once the card has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast() -> contextlib.AbstractContextManager:
    """Compute in `precision()`."""
    return torch.autocast(device().type, torch.bfloat16) if precision() == "bf16" else contextlib.nullcontext()


def describe() -> dict[str, str | int]:
    """The device by name, its memory in bytes, the precision and the system."""
    here = device()
    if here.type == "cuda":
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(here).total_memory
    else:
        kind = "CPU" if here.type == "cpu" else "Apple GPU"
        name, memory = f"{kind}, {torch.get_num_threads()} threads", psutil.virtual_memory().total
    return {
        "device": name,
        "memory_bytes": memory,
        "precision": precision(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def memory() -> int:
    """Bytes of the card, or of the machine where there is none.

    Where the process may take only a part of a card (`torch.cuda.set_per_process_memory_fraction`), those of a card of
    which it could take as much.
    """
    if device().type != "cuda":
        return psutil.virtual_memory().total
    total, share = torch.cuda.get_device_properties(device()).total_memory, torch.cuda.get_per_process_memory_fraction()
    return total if share == 1 else int(share * total) + CONTEXT


def holds_training(network: torch.nn.Module) -> bool:
    """Whether the device holds what training takes beside activations, in four fifths of its memory.

    In fp32, 4 bytes a weight, and for each that is trained 4 for its gradient and 8 for AdamW's two moments.
    """
    needed = sum(weight.numel() * (16 if weight.requires_grad else 4) for weight in network.parameters())
    return needed <= 0.8 * memory()


def free_memory() -> int:
    """Bytes that can still be taken: on the card where there is one, else of the machine."""
    return torch.cuda.mem_get_info()[0] if device().type == "cuda" else psutil.virtual_memory().available


def require_memory(model: str | Path) -> None:
    """Stop before loading weights that cannot fit.

    Raises:
        NotEnoughMemory: The model's weights, as fp32, are larger than the free memory.
    """
    needed, free = 0, free_memory()
    for path in Path(model).glob("*.safetensors"):
        with safetensors.safe_open(path, "pt") as file:
            needed += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if needed > free:
        raise NotEnoughMemory(
            f"The model in {model} takes {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free here. "
            f"Close other programs and notebooks' kernels, or take a smaller model: quickstart needs about 5 GiB."
        )


def least_seconds(weights: int, tokens: int, rate: float, *, every_weight: bool, checkpointing: bool) -> float:
    """Seconds below which training cannot take on a card: all its operations at the card's full rate.

    Of a weight and a token that is 2 operations forwards, 2 backwards to the layer below, 2 for the gradient of the
    weight where every weight is trained (Kaplan et al. 2020, arXiv 2001.08361), and 2 more to compute activations
    again. Launching, padding, memory and the optimizer come on top: a small model takes several times as long.

    Args:
        weights: Of the layers, without the embeddings.
        tokens: Of all pairs, times the epochs.
        rate: Operations a second, as in `FP32_RATES`.
        every_weight: Whether every weight is trained, and not an adapter.
        checkpointing: Whether activations are computed again.
    """
    return 2 * weights * tokens * (2 + every_weight + checkpointing) / rate


class PeakMemory:
    """The most memory in use inside a `with` block, as `.bytes`: the card's, else the process's; None where unknown.

    On Linux the kernel keeps the process's peak (VmHWM) and resets it on request. What was freed before the block and
    kept (`keep_freed_memory`) is given back to the system first, or the second run of a process would be said to take
    what the first one took.
    """

    def __enter__(self) -> "PeakMemory":
        self.bytes: int | None = None
        self._resettable = False
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            gc.collect()
            with contextlib.suppress(AttributeError):  # not every C library has it
                ctypes.CDLL(None).malloc_trim(0)
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
                self._resettable = True
        return self

    def __exit__(self, *_: object) -> None:
        if device().type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
        elif self._resettable:
            lines = Path("/proc/self/status").read_text().splitlines()
            self.bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own progress bars and warnings."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
