"""Execute notebooks one after the other in one kernel, each from an empty namespace, or copy them for a class.

A kernel of its own for each notebook would import torch and transformers again, which takes as long as training there.
"""

import re
import shutil
from argparse import Namespace
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
from jupyter_core.paths import jupyter_runtime_dir
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from ..data import ROOT
from ..disk import require_writable
from ..errors import ConfigurationError, UserError

EMPTY = "get_ipython().reset(new_session=True)\nimport gc\ngc.collect()\ndel gc"
_TQDM = re.compile(r"(?P<what>\w[\w -]*): +\d+%.*?(?P<done>\d+)/(?P<total>\d+) \[[\d:]+<(?P<left>[\d:]+)")


class Kernel(NotebookClient):
    """A kernel that executes notebooks; what a cell prints with a bar of its own is shown in `bar`."""

    bar: tqdm

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        """nbclient's; of the bars of a cell, only the last state is kept."""
        if msg["msg_type"] == "stream" and (shown := [*_TQDM.finditer(msg["content"]["text"])]):
            now = shown[-1].groupdict()
            self.bar.set_postfix_str("{what}: {done} of {total}, {left} left".format(**now))
        return super().process_message(msg, cell, cell_index)

    def printed_by(self, code: str) -> str:
        """What code prints that belongs to no notebook."""
        cell = nbformat.v4.new_code_cell(code)
        self.nb = nbformat.v4.new_notebook(cells=[cell])
        self.execute_cell(cell, 0, store_history=False)
        return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")

    def execute_all(self, notebook: NotebookNode) -> None:
        """Execute a notebook's cells in order, from an empty namespace."""
        self.printed_by(EMPTY)
        self.nb = notebook
        self.reset_execution_trackers()
        for number, cell in enumerate(notebook.cells):
            self.execute_cell(cell, number)
            self.bar.set_postfix_str("", refresh=False)
            self.bar.update()


def require_runtime_folder() -> None:
    """Raise `UserError` where a kernel could not start, which writes into the user's home how it is to be reached."""
    require_writable(Path(jupyter_runtime_dir()), "Set HOME, or JUPYTER_RUNTIME_DIR, to a folder that can be.")


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel that works in a folder, started at once."""
    client = Kernel(nbformat.v4.new_notebook(), kernel_name="python3", timeout=None, coalesce_streams=True)
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # its note on TCP would break the progress bar
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []  # this Python's own, whatever else is installed
    try:
        with client.setup_kernel(cwd=str(folder)):
            yield client
    except RuntimeError as error:  # of jupyter_client: it died, or was too slow, before it was ready
        raise UserError(f"The notebooks' kernel did not start ({error}). {memory_advice()}") from error


def execute(sources: Mapping[Path, Mapping[str, object]], folder: Path, ending: str = "") -> str:
    """Execute notebooks with their parameters, and keep each in a folder, failed or not, also as HTML.

    Returns what `ending` prints, which is executed after them: this process has not imported torch, their kernel has.
    Raises `UserError` where a cell failed, or the kernel was ended from outside. What was finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = {}
    for path, parameters in sources.items():
        notebook, _ = ClearOutputPreprocessor().preprocess(load_notebook_node(str(path)), {})
        notebooks[path] = parameterize_notebook(notebook, dict(parameters)) if parameters else notebook
    total = sum(len(notebook.cells) for notebook in notebooks.values())
    written: list[Future] = []
    layout = "{desc} {bar:20} {n_fmt}/{total_fmt} cells, {elapsed}{postfix}"
    with ThreadPoolExecutor(1) as writer, tqdm(total=total, bar_format=layout, mininterval=0.5) as bar:
        bar.set_description("starting")
        with kernel(next(iter(sources)).parent) as client:
            client.bar = bar
            for path, notebook in notebooks.items():
                bar.set_description(path.stem)
                try:
                    client.execute_all(notebook)
                except (CellExecutionError, DeadKernelError) as error:
                    raise UserError(_what_failed(error, notebook, folder / path.name)) from error
                finally:
                    written.append(writer.submit(_write, notebook, folder / path.name))
            printed = client.printed_by(ending)
    for future in written:
        future.result()  # what went wrong in writing is raised here
    return printed


def _what_failed(error: CellExecutionError | DeadKernelError, notebook: NotebookNode, target: Path) -> str:
    if isinstance(error, CellExecutionError):
        count = max(cell.get("execution_count") or 0 for cell in notebook.cells)
        reason = f"stopped in cell {count}: {error.ename}: {error.evalue}"
        if error.ename == "MemoryError" or "allocate memory" in error.evalue:
            reason += f". {memory_advice()}"
    else:
        reason = f"stopped: its kernel was ended from outside, as a rule for want of memory. {memory_advice()}"
    where = f"The notebook as far as it came: {target}."
    if shutil.disk_usage(target.parent).free < 1 << 20:
        where = f"The disk of {target.parent} is full: free some space, or name another folder (--outputs)."
    return f"{target.name} {reason}\n{where} What was finished is kept. The same command resumes."


def memory_advice() -> str:
    """How much memory there is, and what to do where it is too little."""
    memory = psutil.virtual_memory()
    free = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB of memory are free"
    remedy = "run less at once (--runs zero-shot,lora-balanced), or take a smaller model (--model)"
    return f"{free}. Close other programs, {remedy}."


def _write(notebook: NotebookNode, target: Path) -> None:
    from nbconvert import HTMLExporter  # slow to import, while the next notebook runs

    for part in (notebook, *notebook.cells):
        for name in ("papermill", "execution", "widgets"):
            part.metadata.pop(name, None)
    nbformat.write(notebook, target)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    target.with_suffix(".html").write_text(html, encoding="utf-8", newline="\n")


def copy_for_class(options: Namespace) -> None:
    """Write the notebooks into a folder, without outputs and without the answers to their exercises."""
    if options.folder.exists():
        raise ConfigurationError(f"{options.folder} is there already. Name a new folder.")
    require_writable(options.folder, "Name another folder.")
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(source, as_version=4), {})
        for cell in notebook.cells:
            cell.source = re.sub(r"\s*<details>.*?</details>", "", cell.source, flags=re.DOTALL)
        nbformat.write(notebook, options.folder / source.name)
        print(options.folder / source.name)
