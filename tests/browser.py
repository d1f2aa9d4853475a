"""Debian's Chromium, driven by Playwright: its own download of browsers is not needed."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys

import pytest
from playwright.sync_api import sync_playwright

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, then run again")


@contextlib.contextmanager
def chromium():
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def started(line, **options):
    """A server in a process group of its own, which is ended with all that it started, whatever happens."""
    process = subprocess.Popen(line, text=True, start_new_session=True, preexec_fn=_end_with_the_tests, **options)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_the_tests() -> None:
    """Let the kernel end a server whose tests were killed before they could."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
