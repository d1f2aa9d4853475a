"""What the server of `forked` imports before it forks anything, out of garbage collection's way."""

import gc
import importlib
import sys

gc.disable()  # there is nothing to collect while modules are made
sys.modules["rfc3987_syntax"] = None  # see conftest

for name in (
    "dialogue_summarization.study", "dialogue_summarization.commands.cli", "dialogue_summarization.figures",
    "helpers", "peft", "papermill", "ipykernel.kernelapp", "matplotlib.pyplot",
):  # fmt: skip
    importlib.import_module(name)

gc.collect()
gc.freeze()
gc.enable()
