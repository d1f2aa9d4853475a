"""`study demo`: a web page on this machine that shows what each run makes of a dialogue. Needs the extra `demo`."""

import textwrap
import time
from argparse import Namespace
from collections.abc import Sequence
from html import escape

from .. import generation, hardware, runs, study
from ..errors import ConfigurationError, NotEnoughMemory, UserError
from ..models import ModelBundle
from ..report import display_name


def serve(options: Namespace) -> None:
    """Serve the page until interrupted. It fetches nothing from elsewhere and reports to no one.

    Raises:
        ConfigurationError: No run has its weights here, or the address cannot be used.
        UserError: Gradio is missing.
    """
    try:
        import gradio
    except ImportError:
        raise UserError("The page needs gradio: `uv sync --extra demo`, or pip install -e '.[demo]'.") from None
    records = loadable(runs.collect(options.experiment, options.outputs or runs.OUTPUTS), options.experiment)
    with hardware.quiet():
        bundles = [study.load_run(run) for run in records]
    page = gradio.Interface(
        lambda dialogue: answer(records, bundles, dialogue),
        gradio.Textbox(label="Dialogue", lines=8, max_lines=20, placeholder="#Person1#: Hello.\n#Person2#: Hi!"),
        gradio.HTML(label="Summaries"),
        title="Dialogue summaries",
        description=f"Runs of {options.experiment} on {hardware.describe()['device']}.",
        submit_btn="Summarize",
        flagging_mode="never",
        concurrency_limit=1,  # a model that generates is set up for it: the next dialogue waits
        analytics_enabled=False,
    )
    system_fonts = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    offline = {"theme": system_fonts, "footer_links": [], "enable_monitoring": False, "ssr_mode": False}
    try:
        # Files of one byte at most: the page takes none.
        _, url, _ = page.launch(
            server_name=options.host, quiet=True, prevent_thread_lock=True, max_file_size=1, **offline
        )
    except OSError as error:
        raise ConfigurationError(f"The page cannot be served at {options.host}: {error}") from None
    if options.host not in ("localhost", "::1") and not options.host.startswith("127."):
        print("Everyone in the network can use this page.")
    print(f"{', '.join(map(display_name, records))}: {url} (Ctrl-C ends it)", flush=True)
    page.block_thread()


def loadable(records: Sequence[runs.Run], experiment: str) -> list[runs.Run]:
    """The runs whose models can be loaded; a line names the others. Raises `ConfigurationError` if none is trained."""
    if not any(run.weights for run in records):
        raise ConfigurationError(f"No trained run of {experiment} has weights here. `study {experiment}` makes them.")
    missing = [run for run in records if run.config.settings is not None and not run.weights]
    if missing:
        names = ",".join(dict.fromkeys(run.name for run in missing))
        print(f"Left out, as their weights are not here: {', '.join(map(display_name, missing))}.")
        print(f"`study {experiment} --runs {names}` makes them.")
    return [run for run in records if run not in missing]


def answer(records: Sequence[runs.Run], bundles: Sequence[ModelBundle], dialogue: str) -> str:
    """HTML with each run's summary and its seconds, or with what is wrong; every text in it is escaped."""
    # A browser can send halves of characters, which no tokenizer takes.
    text = dialogue.encode("utf-8", "replace").decode().replace("\r\n", "\n").strip()
    if not text:
        return "<p>The dialogue is empty. Write one, each turn on a line of its own, as #Person1#: Hello.</p>"
    rows = ["<tr><th>run</th><th>summary</th><th>seconds</th></tr>"]
    for run, bundle in zip(records, bundles, strict=True):
        start = time.perf_counter()
        try:
            with hardware.quiet():
                [summary] = generation.summarize(bundle, [text], run.experiment.generation, progress=False)
        except NotEnoughMemory as error:
            return f"<p>{escape(str(error))}</p>"
        markup = escape(summary).replace("\n", "<br>") or "<i>empty</i>"
        seconds = f"{time.perf_counter() - start:.1f}"
        rows.append(f"<tr><th>{escape(display_name(run))}</th><td>{markup}</td><td>{seconds}</td></tr>")
    family = bundles[0].family
    tokens, limit = len(family.tokenizer(family.render(text), verbose=False)["input_ids"]), family.max_prompt_tokens
    note = f"({tokens:,} tokens with the prompt)"
    if tokens > limit:
        note = f"is longer than the model takes: {tokens:,} tokens with the prompt, of {limit:,}. Its end was left out."
    return f"<p>“{escape(textwrap.shorten(text, 60, placeholder=' …'))}” {note}</p><table>{''.join(rows)}</table>"
