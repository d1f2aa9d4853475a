"""A run in a process of its own that kills itself at a given moment: what `core/test_killed.py` starts.

In a module that another process can import by name.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from dialogue_summarization import generation, study, training
from dialogue_summarization.experiments import METHODS


def make(experiment, outputs, told, kill_at=0, delay=0.0):
    """A run in a process of its own. It writes down its moments in `told`, and is killed `delay` seconds after one.

    Moments are steps of training, batches of summaries, and files opened, renamed and removed in `outputs`.
    """
    moments, log = 0, os.open(told, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def tick(what):
        nonlocal moments
        moments += 1
        os.write(log, f"{what}\n".encode())
        if moments == kill_at:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def watch(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(outputs) in str(arguments[0]):
            tick(f"{event} {Path(str(arguments[0])).name}")

    def counted(owner, name):
        usual = getattr(owner, name)

        def call(*some, **more):
            tick(name)
            return usual(*some, **more)

        setattr(owner, name, call)

    sys.addaudithook(watch)
    counted(training.SummarizationTrainer, "training_step")
    counted(generation.BatchGenerator, "generate")
    study.run(experiment, METHODS["full"], outputs=outputs)
