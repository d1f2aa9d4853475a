"""Whether the Hugging Face Hub answers, asked once and briefly: its client retries a silent server for minutes."""

import contextlib
from collections.abc import Iterator

import datasets
from huggingface_hub import constants, get_session

TIMEOUT_SECONDS = 5.0


def hub_error() -> str | None:
    """Why the Hub cannot be used now; None where it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS).status_code
    except Exception as error:  # whichever HTTP library the client is built on
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None


@contextlib.contextmanager
def offline_if_unreachable() -> Iterator[str | None]:
    """Let the libraries use their caches alone where the Hub cannot be reached; the value says why."""
    reason = hub_error()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if reason:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
