"""The energy that the GPU used, where NVIDIA's management library counts it: `uv sync --extra energy`."""

import torch


class Energy:
    """The joules of the current GPU inside a `with` block, as `.joules`; None where nobody counts them.

    The card's own counter (Volta and newer) covers the whole card, other programs on it included, not the host.
    """

    def __enter__(self) -> "Energy":
        self.joules: float | None = None
        self._start = _counter()
        return self

    def __exit__(self, *_: object) -> None:
        end = _counter()
        if self._start is not None and end is not None:
            self.joules = round((end - self._start) / 1000, 1)


def _counter() -> int | None:
    """Millijoules since the driver was loaded."""
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # By UUID: with CUDA_VISIBLE_DEVICES, CUDA's numbers are not the library's.
        name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(name))
    except Exception:  # not installed, no permission, an old card: a record without energy
        return None
