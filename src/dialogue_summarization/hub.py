"""What the Hugging Face Hub has, and what to do where it does not give it. Its client retries for minutes."""

import os
import re
from collections.abc import Callable
from typing import Any

import datasets
from huggingface_hub import constants, get_session

from .errors import UserError

TIMEOUT_SECONDS = 5.0
SOCKS = "a SOCKS proxy is set, which takes a package: `uv pip install socksio`, or unset ALL_PROXY and HTTPS_PROXY"


def fetch(load: Callable[[str], Any], name: str, kind: str, error_class: type[UserError]) -> Any:
    """What `load` gets by a name from the cache or the Hub: a `kind` "model" or "dataset". Raises `error_class`."""
    reason = go_offline_if_silent()
    try:
        return load(name)
    except Exception as error:
        reason = reason or f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]
        page = name if kind == "model" else f"datasets/{name}"
        raise error_class(
            f"The {kind} {name!r} is not in the cache and could not be fetched from the Hugging Face Hub ({reason}). "
            f"{advice(error, page)} Without a network, give a folder with its files (--{kind} PATH), or run the "
            f"experiment quickstart, which needs none."
        ) from error


def go_offline_if_silent() -> str | None:
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
        if "SOCKS" in str(error):
            return SOCKS
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}: {str(error)[:100]}"
    return f"{constants.ENDPOINT} answers with status {status}" if status >= 500 else None


_LOG_IN = "log in: `uv run hf auth login`"
# What the Hub's client says in its errors, and what to do; the first that fits.
_ADVICE = {
    r"GatedRepo|gated dataset on": f"It is gated: accept its terms at {constants.ENDPOINT}/{{}}, and {_LOG_IN}.",
    r"\b429\b": f"The Hub has had too many requests from here: wait some minutes, or {_LOG_IN}.",
    r"is expired|Invalid credentials": "The Hub does not take your access token, which is wrong or has expired: unset "
    f"HF_TOKEN, or make another at {constants.ENDPOINT}/settings/tokens, and {_LOG_IN}.",
    r"RepositoryNotFound|doesn't exist|HFValidation|\b40[134]\b": "The Hub has nothing of that name that you may "
    f"read: check its spelling, as owner/name. If it is private, {_LOG_IN}.",
    r"\[Errno (13|17|20|28|30)\]": "Its cache cannot be written: set HF_HOME to a folder that can be.",
}


def advice(error: BaseException | None, page: str) -> str:
    """What to do about an error of the Hub's client; `page` is what was asked for, as its address has it."""
    said = ""
    while error:
        said, error = f"{said} {type(error).__name__} {error}", error.__cause__ or error.__context__
    found = (advice for pattern, advice in _ADVICE.items() if re.search(pattern, said))
    return next(found, "Try again when it answers; what was fetched is kept.").format(page)
