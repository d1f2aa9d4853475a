"""Whether the Hugging Face Hub answers, asked once and briefly: its client retries a silent server for minutes."""

import os

import datasets
from huggingface_hub import constants, get_session

TIMEOUT_SECONDS = 5.0


def offline_reason() -> str | None:
    """Why the Hub cannot be used now, and the libraries use their caches alone from now on; None where it answers."""
    reason = _reason()
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = reason is not None
    return reason


def _reason() -> str | None:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in constants.ENV_VARS_TRUE_VALUES:
        return "HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS).status_code
    except Exception as error:  # whichever HTTP library the client is built on
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None
