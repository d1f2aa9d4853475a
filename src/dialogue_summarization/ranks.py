"""What a launcher of several processes tells each of them in its environment."""

import os

from .errors import ConfigurationError


def require_one_process() -> None:
    """Raise `ConfigurationError` where a launcher left its variables: a training would wait for other processes."""
    left = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ]
    for name in [name for name in left if not os.environ[name]]:  # empty: libraries would take it for a number
        left.remove(name)
        del os.environ[name]
    if os.environ.get("WORLD_SIZE", "1") != "1" or "LOCAL_RANK" in left:
        values = ", ".join(f"{name}={os.environ[name]}" for name in left)
        how = f"`unset {' '.join(left)}`. `study --gpus N` starts its processes itself"
        raise ConfigurationError(f"A launcher of several processes left {values} in the environment: {how}.")
