"""Whether the Hugging Face Hub answers, asked once and briefly before anything is fetched.

Its client asks again and again: with a server that took connections and said nothing, a data set's error came after 396
seconds and a model's not within 420 (huggingface_hub 2.4). A server that falls silent in mid-download took 65.
"""

import contextlib
from collections.abc import Iterator

import datasets
from huggingface_hub import constants, get_session

SECONDS = 5.0  # to answer in


def silence() -> str | None:
    """Why the Hub cannot be used now; None where it answers."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        status = get_session().head(constants.ENDPOINT, timeout=SECONDS).status_code
    except Exception as error:  # of whichever library the client is built on
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None


@contextlib.contextmanager
def caches_alone_if_silent() -> Iterator[str | None]:
    """Let the libraries look into their caches alone where the Hub cannot be used; the value says why."""
    reason = silence()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if reason:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
