"""Execute notebooks one after the other in one kernel, each from an empty namespace, with one progress bar.

A kernel of its own for each notebook would import torch and transformers again, which takes as long as training there.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from tqdm import tqdm

from ..errors import UserError

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


@contextmanager
def kernel(folder: Path) -> Iterator[Kernel]:
    """A kernel that works in a folder, started at once."""
    client = Kernel(nbformat.v4.new_notebook(), kernel_name="python3", timeout=None, coalesce_streams=True)
    client.extra_arguments = ["--IPKernelApp.log_level=40"]  # its note on TCP would break the progress bar
    with client.setup_kernel(cwd=str(folder)):
        yield client


def execute(sources: Mapping[Path, Mapping[str, object]], folder: Path, ending: str = "") -> str:
    """Execute notebooks with their parameters, and keep each in a folder, failed or not, also as HTML.

    Returns what `ending` prints, which is executed after them: this process has not imported torch, their kernel has.

    Raises:
        UserError: A cell failed, or the kernel was ended from outside. What was finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = {path: _with_parameters(path, parameters) for path, parameters in sources.items()}
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
                    raise UserError(f"{path.name} {_reason(error, notebook)}\n{_kept(folder / path.name)}") from error
                finally:
                    written.append(writer.submit(_write, notebook, folder / path.name))
            printed = client.printed_by(ending)
    for future in written:
        future.result()  # what went wrong in writing is raised here
    return printed


def _with_parameters(path: Path, parameters: Mapping[str, object]) -> NotebookNode:
    notebook, _ = ClearOutputPreprocessor().preprocess(load_notebook_node(str(path)), {})
    return parameterize_notebook(notebook, dict(parameters)) if parameters else notebook


def _reason(error: Exception, notebook: NotebookNode) -> str:
    if isinstance(error, CellExecutionError):
        count = max(cell.get("execution_count") or 0 for cell in notebook.cells)
        return f"stopped in cell {count}: {error.ename}: {error.evalue}"
    return (
        "stopped: its kernel was ended from outside, as a rule for want of memory. Close other programs, run less at "
        "once (--runs zero-shot,lora-balanced), or take a smaller model (--model)."
    )


def _kept(path: Path) -> str:
    return f"The notebook as far as it came: {path}. What was finished is kept. The same command resumes."


def _write(notebook: NotebookNode, target: Path) -> None:
    from nbconvert import HTMLExporter  # slow to import, while the next notebook runs

    for part in (notebook, *notebook.cells):
        for name in ("papermill", "execution", "widgets"):
            part.metadata.pop(name, None)
    nbformat.write(notebook, target)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    target.with_suffix(".html").write_text(html, encoding="utf-8", newline="\n")
