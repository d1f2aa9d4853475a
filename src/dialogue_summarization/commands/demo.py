"""`study demo`: a web page on this machine that shows what each run makes of a dialogue. Needs the extra `demo`."""

import textwrap
import time
from argparse import Namespace
from collections.abc import Sequence
from html import escape

import pandas as pd

from .. import hardware, runs, study
from ..errors import ConfigurationError, UserError
from ..hub import SOCKS
from ..models import ModelBundle
from ..report import display_name
from .trained import announce, summarize_long


def serve(options: Namespace) -> None:
    """Serve the page until interrupted. It fetches nothing from elsewhere and reports to no one. Raises `UserError`."""
    try:
        import gradio
    except ImportError as error:
        reason = SOCKS if "SOCKS" in str(error) else "`uv sync --extra demo`, or pip install -e '.[demo]'"
        raise UserError(f"The page needs gradio: {reason}.") from None
    records = loadable(runs.collect(options.experiment, options.outputs or runs.OUTPUTS), options.experiment)
    for run in records:
        announce(run)
    with hardware.quiet():
        bundles = [study.load_run(run) for run in records]
    page = gradio.Interface(
        lambda dialogue: answer(records, bundles, dialogue, options.long),
        gradio.Textbox(label="Dialogue", lines=8, max_lines=20, placeholder="#Person1#: Hello.\n#Person2#: Hi!"),
        gradio.HTML(label="Summaries"),
        title=f"Dialogue summaries: {options.experiment} on {hardware.describe()['device']}",
        submit_btn="Summarize",
        flagging_mode="never",
        concurrency_limit=1,  # a model that generates is set up for it: the next dialogue waits
        analytics_enabled=False,
    )
    theme = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    safe = {"theme": theme, "footer_links": [], "enable_monitoring": False, "ssr_mode": False, "max_file_size": 1}
    try:
        _, url, _ = page.launch(server_name=options.host, quiet=True, prevent_thread_lock=True, show_error=True, **safe)
    except OSError as error:
        raise ConfigurationError(f"The page cannot be served at {options.host}: {error}") from None
    print(f"{', '.join(map(display_name, records))}: {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def loadable(records: Sequence[runs.Run], experiment: str) -> list[runs.Run]:
    """The runs whose models can be loaded; a line names the others. Raises `ConfigurationError` if none is trained."""
    if not any(run.weights for run in records):
        raise ConfigurationError(f"No trained run of {experiment} has weights here. `study {experiment}` makes them.")
    missing = [run for run in records if run.config.settings is not None and not run.weights]
    if missing:
        names = ",".join(dict.fromkeys(run.name for run in missing))
        print(f"Left out, as weights are not here: {names}.\n`study {experiment} --runs {names}` makes them.")
    return [run for run in records if run not in missing]


def answer(records: Sequence[runs.Run], bundles: Sequence[ModelBundle], dialogue: str, long: str = "cut") -> str:
    """HTML with each run's summary and its seconds, and the dialogue's beginning; every text in it is escaped."""
    # A browser can send halves of characters, which no tokenizer takes.
    text = dialogue.encode("utf-8", "replace").decode().strip()
    if not text:
        return "<p>The dialogue is empty. Write one, each turn on a line of its own, as #Person1#: Hello.</p>"
    rows = {}
    for run, bundle in zip(records, bundles, strict=True):
        start = time.perf_counter()
        with hardware.quiet():
            summary, parts = summarize_long(bundle, text, run.experiment.generation, long)
        rows[display_name(run)] = {"summary": summary or "(empty)", "seconds": f"{time.perf_counter() - start:.1f}"}
    family = bundles[0].family
    tokens, limit = family.prompt_length(text), family.max_prompt_tokens
    note = f"({tokens:,} tokens with the prompt)"
    if tokens > limit:
        left = f"It was summarized in {parts} parts" if parts > 1 else "Its end was left out"
        note = f"is longer than the model takes: {tokens:,} tokens with the prompt, of {limit:,}. {left}."
    table = pd.DataFrame(rows).T.style.format(escape="html").format_index(escape="html")
    table.set_properties(**{"text-align": "left", "white-space": "pre-wrap"})
    return f"<p>“{escape(textwrap.shorten(text, 60, placeholder=' …'))}” {note}</p>{table.to_html()}"
