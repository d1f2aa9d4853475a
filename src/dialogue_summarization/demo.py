"""Try it yourself: what each run makes of a dialogue, side by side, in a notebook and on a local web page."""

import html
import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import ipywidgets
import pandas as pd

from . import hardware, models, study
from .breakdown import Html, escaped, table
from .data import DataError
from .experiments import ConfigurationError, Generation
from .generation import summarize
from .report import label, texts_of
from .runs import Run

EMPTY = "The dialogue is empty. Write or paste one, each turn on a line of its own, as #Person1#: Hello."


class NotInstalled(ImportError):
    """The extra is missing; the message says how to have it."""


@dataclass(frozen=True)
class Writer:
    """A run's model, ready to write."""

    name: str
    model: models.Model
    generation: Generation


def usable(made: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that can write here, and a line for each that cannot: its weights are missing.

    An untrained run has none of its own; where no other can write it is left out too, as there is nothing to compare.
    """
    missing = [
        f"{label(run)}: its weights are not here, `study {run.config.experiment} --runs {run.name}` makes them."
        for run in made
        if run.config.settings is not None and run.weights is None
    ]
    trained = any(run.weights for run in made)
    return [run for run in made if run.weights or (trained and run.config.settings is None)], missing


def load(made: Sequence[Run]) -> list[Writer]:
    """The models of runs, each with a base of its own in memory. Raises what `study.model_of` does."""
    with hardware.quiet():
        return [Writer(label(run), study.model_of(run), run.experiment.generation) for run in made]


def summaries(writers: Sequence[Writer], dialogue: str) -> pd.DataFrame:
    """A row a run: its `summary` of the dialogue, and the `seconds` it took here.

    Raises:
        DataError: The dialogue is empty.
        NotEnoughMemory: It does not fit.
    """
    text = _readable(dialogue)
    if not text:
        raise DataError(EMPTY)
    rows = []
    for writer in writers:
        start = time.perf_counter()
        with hardware.quiet():
            [summary] = summarize(writer.model, [text], writer.generation, progress=False)
        rows.append({"run": writer.name, "summary": summary, "seconds": f"{time.perf_counter() - start:.1f}"})
    return pd.DataFrame(rows).set_index("run")


def answer(writers: Sequence[Writer], dialogue: str) -> str:
    """What pressing the button shows, as HTML with every text escaped: the summaries, or what is wrong."""
    try:
        found = summaries(writers, dialogue)
    except (DataError, hardware.NotEnoughMemory) as error:
        return _paragraph(str(error))
    text = _readable(dialogue)
    begin = " ".join(text[:200].split())
    begin = begin if len(begin) <= 60 else f"{begin[:60]} …"
    return f"{_paragraph(f'“{begin}” {_read(writers[0], text)}')}{_table(found)}"


def recorded(made: Sequence[Run], test: datasets.Dataset, number: int = 0) -> Html:
    """What the records hold of one test dialogue; the time of one is the mean over all that were written together."""
    row = test[number]
    found = pd.DataFrame(
        {
            "summary": {label(run): texts_of(run, test)[number] for run in made},
            "seconds a dialogue": {
                label(run): f"{run.metrics['generate_seconds'] / run.metrics['dialogues']:.2f}" for run in made
            },
        }
    )
    return Html(
        f"<p><b>{html.escape(row['id'])}</b><br>{escaped(row['dialogue'])}</p>{_table(found.rename_axis('run'))}"
    )


class _Box(ipywidgets.VBox):
    def __repr__(self) -> str:
        return "(a text box and a button, shown where the notebook runs)"  # what is kept of it in a file


def try_it(made: Sequence[Run], dialogue: str) -> _Box | None:
    """A text box with a dialogue to change, and a button that shows what runs make of it.

    Models are loaded when the button is first pressed. Where no weights are, a line says how to make them.
    """
    there, missing = usable(made)
    if not there:
        print(_nothing(made[0].config.experiment if made else "quickstart"))
        return None
    for line in missing:
        print(line)
    box = ipywidgets.Textarea(dialogue, rows=8, layout={"width": "auto"})
    button = ipywidgets.Button(description="Summarize", button_style="primary")
    shown = ipywidgets.HTML()
    writers: list[Writer] = []

    def press(_: ipywidgets.Button) -> None:
        button.disabled, shown.value = True, _paragraph("Writing; the first time, models are loaded before …")
        try:
            if not writers:
                writers.extend(load(there))
            shown.value = answer(writers, box.value)
        except Exception as error:  # of a press no cell would show it
            shown.value = _paragraph(f"{type(error).__name__}: {error}")
        finally:
            button.disabled = False

    button.on_click(press)
    return _Box([box, button, shown])


def serve(made: Sequence[Run], experiment: str, host: str) -> None:
    """A web page of the same, until interrupted. It fetches nothing from elsewhere and tells no one.

    Args:
        made: The runs of the experiment.
        experiment: Its name.
        host: The address to listen on; on any but this machine's own, everyone who reaches it can use the page.

    Raises:
        ConfigurationError: No run has its weights here.
        NotInstalled: The extra `demo` is missing.
    """
    if not importlib.util.find_spec("gradio"):
        raise NotInstalled("The web page needs gradio: `uv sync --extra demo`, or pip install -e '.[demo]'.")
    there, missing = usable(made)
    for line in missing:
        print(line)
    if not there:
        raise ConfigurationError(_nothing(experiment))
    import gradio

    writers = load(there)
    with gradio.Blocks(title=f"Dialogue summaries: {experiment}", analytics_enabled=False) as page:
        gradio.Markdown(f"# Dialogue summaries\n\nRuns of {experiment} on {hardware.describe()['device']}.")
        box = gradio.Textbox(label="Dialogue", lines=8, max_lines=20, placeholder="#Person1#: Hello.\n#Person2#: Hi!")
        button = gradio.Button("Summarize", variant="primary")
        shown = gradio.HTML()
        # One at a time: a model that writes is set up for it, and the next dialogue waits.
        button.click(lambda dialogue: answer(writers, dialogue), box, shown, concurrency_limit=1)
    system = ["system-ui", "sans-serif"]
    try:
        _, url, _ = page.launch(
            server_name=host, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False, footer_links=[],
            enable_monitoring=False, max_file_size=1,  # a byte: the page takes no files
            theme=gradio.themes.Default(font=system, font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
    except OSError as error:
        raise ConfigurationError(f"The page cannot be served at {host}: {error}") from None
    if host not in ("localhost", "::1") and not host.startswith("127."):
        print("Everyone in the network can use this page.")
    print(f"{', '.join(writer.name for writer in writers)}: {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def _nothing(experiment: str) -> str:
    return f"There is nothing to try: no trained run of {experiment} has its weights. `study {experiment}` makes them."


def _readable(dialogue: str) -> str:
    """A dialogue without what no tokenizer takes: halves of characters, which a browser can send."""
    return dialogue.encode("utf-8", "replace").decode().replace("\r\n", "\n").strip()


def _read(writer: Writer, text: str) -> str:
    """How much of a dialogue the model reads, in words."""
    family = writer.model.family
    row = family.encode(text)
    if not row["truncated"]:
        return f"({row['length']:,} tokens with the prompt)"
    whole = len(family.tokenizer(family.render(text), verbose=False)["input_ids"])
    return (
        f"is longer than the model takes: {whole:,} tokens with the prompt, of {family.max_prompt_tokens:,}. "
        "Its end was left out."
    )


def _paragraph(text: str) -> str:
    return f"<p>{escaped(text)}</p>"


def _table(found: pd.DataFrame) -> str:
    flat = found.reset_index()
    return table([map(html.escape, flat), *(map(escaped, row) for row in flat.to_numpy())])
