"""Processes that have imported what is heavy: commands and kernels of their own, without seconds of imports each.

They are forked from a server (`multiprocessing`'s) that has imported our package and has done nothing else.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import forkserver, reduction
from pathlib import Path

import pytest
from torch.multiprocessing.spawn import start_processes

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["preloaded"])
STREAMS = (("in", os.O_RDONLY), ("out", os.O_WRONLY), ("err", os.O_WRONLY))


def process(target, *arguments):
    """A process that calls a function of a module, not yet started."""
    serve()
    return processes.Process(target=target, args=arguments)


def serve():
    """Start the server, where there is none yet. It finds the modules of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()


def command(*arguments, **options):
    """What the command `study` says, as a process of its own."""
    return run(_command, [*map(str, arguments)], **options)


def python(code, **options):
    """What Python code says, as a process of its own."""
    return run(_python, code, **options)


def subprocess_run(line, *, usual=subprocess.run, **options):
    """`subprocess.run`, by the server where it is Python code whose output is captured as text."""
    if line[:2] != [sys.executable, "-c"]:
        return usual(line, **options)
    return python(line[2], cwd=options["cwd"], env=options["env"])


def run(target, argument, input="", cwd=None, env=None):
    """As `subprocess.run` with text that is captured, of a function of a module."""
    with tempfile.TemporaryDirectory() as place:
        for name, _ in STREAMS:
            Path(place, name).write_text(input if name == "in" else "", encoding="utf-8")
        alone = process(_alone, target, argument, place, str(cwd or Path.cwd()), {**os.environ, **(env or {})})
        alone.start()
        alone.join()
        said = [Path(place, name).read_text("utf-8") for name in ("out", "err")]
    return subprocess.CompletedProcess(argument, alone.exitcode, *said)


def _alone(target, argument, place, cwd, environment):
    for number, (name, flags) in enumerate(STREAMS):
        os.dup2(os.open(os.path.join(place, name), flags), number)
    streams = [os.fdopen(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")]
    sys.stdin, sys.stdout, sys.stderr = streams
    _as_started(cwd, environment)
    target(argument)


def _as_started(cwd, environment):
    import torch

    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    gc.freeze()  # see conftest


def _end_with_the_tests():
    multiprocessing.parent_process().join()
    os._exit(1)


def _command(arguments):
    from dialogue_summarization.commands import cli

    sys.exit(cli.main(arguments))


def _python(code):
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})


@contextlib.contextmanager
def launched():
    """Let `distributed.processes` fork the processes that it launches."""

    def start(function, given, count, join):
        given = (Streams(), os.getcwd(), dict(os.environ), function, *given)
        return start_processes(_launched, given, count, join, start_method="forkserver")

    serve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dialogue_summarization.distributed.processes.start_processes", start)
        yield


class Streams:
    """What this process writes to; a process that is forked with it writes there too."""

    def __reduce__(self):
        return _write_to, (reduction.DupFd(1), reduction.DupFd(2))


def _write_to(*streams):
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.detach(), number)


def _launched(rank, _, cwd, environment, function, *given):
    _as_started(cwd, environment)
    function(rank, *given)


@contextlib.contextmanager
def kernels():
    """Let notebooks have kernels forked from the server; they are ipykernel's in all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", _launch)
        yield


def _launch(line, env=None, cwd=None, **_):
    assert line[1:3] == ["-m", "ipykernel_launcher"], line
    started = process(_kernel, line[3:], cwd or os.getcwd(), dict(env or os.environ))
    started.start()
    with contextlib.suppress(ProcessLookupError):  # whoever signals its group means it alone
        while started.is_alive() and os.getpgid(started.pid) != started.pid:
            time.sleep(0.001)
    return Kernel(started)


def _kernel(arguments, cwd, environment):
    from ipykernel import kernelapp

    os.setsid()
    sys.stdin, sys.stdout, sys.stderr = (open(os.devnull, mode) for mode in "rww")  # noqa: SIM115
    _as_started(cwd, environment)
    # A new process reads from its environment where figures go, and whose it is; this one has imported what reads it.
    own = ["--IPKernelApp.matplotlib=inline", "--IPKernelApp.parent_handle=1"]
    kernelapp.launch_new_instance(argv=[*arguments, *own])


class Kernel:
    """A process as `subprocess.Popen` shows it to jupyter_client."""

    stdin = stdout = stderr = None

    def __init__(self, process):
        self.process, self.pid = process, process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("kernel", timeout)
        return self.process.exitcode

    def send_signal(self, number):
        if self.process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)
