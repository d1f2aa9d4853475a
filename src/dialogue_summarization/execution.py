"""Notebooks run from the command line: executed by papermill, tidied, and kept with an HTML copy."""

from pathlib import Path

import nbconvert
import nbformat
import papermill


class NotebookFailed(RuntimeError):
    """A cell of a notebook raised an error; the message names both."""


def execute(source: Path, folder: Path, parameters: dict[str, object]) -> None:
    """Run a notebook from a fresh kernel, with a progress bar, and keep it executed and as HTML, failed or not."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    try:
        papermill.execute_notebook(
            str(source), str(target), parameters, kernel_name="python3", cwd=str(source.parent),
            extra_arguments=["--IPKernelApp.log_level=40"],  # its note on TCP would break the progress bar
            progress_bar={"desc": source.stem, "bar_format": "{desc:22}{bar:30} {n_fmt}/{total_fmt} cells {elapsed}"},
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        raise NotebookFailed(
            f"{source.name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"The notebook as far as it came: {relative(target)}. What was finished is kept; the same command goes on."
        ) from error
    finally:
        if target.exists():
            notebook = nbformat.read(target, as_version=4)
            tidy(notebook)
            nbformat.write(notebook, target)
            html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
            target.with_suffix(".html").write_text(html, encoding="utf-8", newline="\n")


def tidy(notebook: dict) -> None:
    """Leave of each progress bar its last state, and nothing of papermill's notes and of widgets but their text."""
    for name in ("papermill", "widgets"):
        notebook["metadata"].pop(name, None)
    for cell in notebook["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
        whole: list[dict] = []
        for output in cell.get("outputs", ()):
            if whole and output["output_type"] == "stream" and output["name"] == whole[-1].get("name"):
                whole[-1]["text"] += output["text"]
            else:
                whole.append(output)
        for output in whole:
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)  # nothing without its kernel
            if output["output_type"] == "stream":
                lines = output["text"].split("\n")
                output["text"] = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
        if "outputs" in cell:
            cell["outputs"] = whole


def relative(path: Path) -> Path:
    """A path as a person in this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
