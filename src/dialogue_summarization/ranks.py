"""What a launcher of several processes tells each of them in its environment."""

import os

from .errors import ConfigurationError


def world_size() -> int:
    """How many processes work together, as the environment has it."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def require_one() -> None:
    """Raise `ConfigurationError` where the environment names other processes, for which a training would wait."""
    left = [name for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if os.environ.get(name)]
    if world_size() > 1 or "LOCAL_RANK" in left:
        raise ConfigurationError(
            f"The environment has {', '.join(f'{name}={os.environ[name]}' for name in left)}, as a launcher of several "
            f"processes leaves it: `unset {' '.join(left)}`. `study --gpus N` starts its processes itself."
        )
