"""Try it yourself: the summaries of runs for any dialogue, in a notebook's box and on a web page in a real browser."""

import html
import os
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import browser
import pytest
from conftest import tiny_experiment

from dialogue_summarization import cli, data, demo, experiments, runs, study

SCRIPT = "#Person1#: <script>window.hit = 1</script><img src=x onerror='window.hit = 2'> ${window.hit = 3} Ben?"
FIRST = "#Person1#: Hello Ann, did you bring a red bike?\n#Person2#: No, I left it at home."
SECOND = "#Person1#: Eva, we have to wait until 9 o'clock.\n#Person2#: I am sorry, Gus."
LONG = "#Person1#: This is a long turn about a violin.\n" * 500


@pytest.fixture(scope="module")
def made(tiny_models, tiny_data, tmp_path_factory):
    """An untrained run and two trained ones, in a folder of outputs."""
    outputs = tmp_path_factory.mktemp("outputs")
    tiny = tiny_experiment(tiny_models["llama"], tiny_data)
    for name in ("zero-shot", "full", "lora-balanced"):
        study.run(tiny, experiments.method(name), outputs=outputs)
    return outputs


@pytest.fixture(scope="module")
def writers(made):
    return demo.load(runs.collect("tiny", made))


def test_summaries_are_those_of_the_records(made, writers, tiny_data):
    found = runs.collect("tiny", made)
    row = data.load_source(str(tiny_data))["test"][0]
    table = demo.summaries(writers, f"  {row['dialogue']}\r\n".replace("\n", "\r\n"))
    assert list(table["summary"]) == [run.predictions["prediction"][0] for run in found]
    assert list(table.index) == ["zero-shot", "full", "lora-balanced"] and (table["seconds"].astype(float) >= 0).all()
    shown = demo.recorded(found, data.load_source(str(tiny_data))["test"]).markup
    assert all(html.escape(text) in shown for text in table["summary"])


@pytest.mark.parametrize("dialogue", ["", " \n\t", "\r\n"])
def test_an_empty_dialogue_gets_a_message_and_no_summary(writers, dialogue):
    with pytest.raises(data.DataError, match="empty"):
        demo.summaries(writers, dialogue)
    assert "The dialogue is empty" in demo.answer(writers, dialogue) and "<table" not in demo.answer(writers, dialogue)


def test_a_dialogue_that_is_cut_is_said_to_be(writers):
    shown = demo.answer(writers, LONG)
    whole, taken = re.search(r"takes: ([\d,]+) tokens with the prompt, of ([\d,]+)", shown).groups()
    assert taken == "256" and int(whole.replace(",", "")) > 5_000 and "left out" in shown and "<table" in shown
    assert "left out" not in demo.answer(writers, FIRST)


def test_markup_and_halves_of_characters_are_shown_as_text(writers):
    shown = demo.answer(writers, SCRIPT + " \ud800")
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown


def test_runs_without_weights_are_left_out_and_named(made):
    found = runs.collect("tiny", made)
    (made / "tiny/full/seed-0/model").rename(made / "elsewhere")
    try:
        there, missing = demo.usable(found)
    finally:
        (made / "elsewhere").rename(made / "tiny/full/seed-0/model")
    assert [run.name for run in there] == ["zero-shot", "lora-balanced"]
    assert len(missing) == 1 and "`study tiny --runs full`" in missing[0]


def test_where_no_weights_are_a_line_says_how_to_make_them(capsys):
    assert demo.try_it(runs.collect("quickstart", "nowhere"), FIRST) is None
    assert "`study quickstart` makes them" in capsys.readouterr().out
    assert cli.main(["demo", "quickstart", "--outputs", "nowhere"]) == 1
    assert "`study quickstart` makes them" in capsys.readouterr().err


def test_without_gradio_the_message_says_how_to_have_it(monkeypatch, made, capsys):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    assert cli.main(["demo", "tiny", "--outputs", str(made)]) == 1
    assert "--extra demo" in capsys.readouterr().err


def test_the_box_of_the_notebook_shows_what_the_button_makes(made, writers):
    box = demo.try_it(runs.collect("tiny", made), FIRST)
    text, button, shown = box.children
    button.click()
    seconds = re.compile(r">\d+\.\d<")
    assert seconds.sub("", shown.value) == seconds.sub("", demo.answer(writers, FIRST)) and not button.disabled
    text.value = ""
    button.click()
    assert "The dialogue is empty" in shown.value


# `study demo`, saying on standard output whom it connects to.
WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect":
        print("connects to", arguments[1], flush=True)
sys.addaudithook(watch)
from dialogue_summarization.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def page_address(made):
    """The address of `study demo` as it prints it, which it does when it has started."""
    line = [sys.executable, "-c", WATCHED, "demo", "tiny", "--outputs", str(made)]
    with browser.started(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=-1) as server:
        said = []
        while not said or "http://" not in said[-1]:
            said.append(server.stdout.readline())
            assert said[-1], said  # it ended
        connected = [one for one in said if one.startswith("connects to")]
        assert connected and all("127.0.0.1" in one for one in connected), connected
        yield re.search(r"http://\S+", said[-1])[0]


def ask(page, dialogue):
    page.get_by_label("Dialogue").fill(dialogue)
    page.get_by_role("button", name="Summarize").click()


def rows(page):
    """Runs and summaries in the page's table, without the times."""
    page.locator("td").first.wait_for()
    lines = page.locator("tr").filter(has=page.locator("td"))
    return [tuple(lines.nth(n).locator("td").all_inner_texts()[:2]) for n in range(lines.count())]


def expected(writers, dialogue):
    return [(name, " ".join(text.split())) for name, text in demo.summaries(writers, dialogue)["summary"].items()]


def normal(found):
    return [(name, " ".join(text.split())) for name, text in found]


@browser.needed
def test_the_page_in_a_browser(page_address, writers, tmp_path):
    assert page_address.startswith("http://127.0.0.1:")
    with browser.chromium() as chromium:
        for scheme in ("light", "dark"):
            page = chromium.new_page(color_scheme=scheme)
            requested, failed = [], []
            page.on("request", lambda request, urls=requested: urls.append(request.url))
            page.on("pageerror", lambda error, errors=failed: errors.append(error))
            page.goto(page_address)
            ask(page, SCRIPT)
            assert normal(rows(page)) == expected(writers, SCRIPT)
            assert "<script>window.hit = 1</script>" in page.locator(".html-container").inner_text()
            assert page.evaluate("window.hit") is None and not failed
            ask(page, "  ")
            page.get_by_text("The dialogue is empty").wait_for()
            assert page.locator("td").count() == 0
            ask(page, LONG)
            page.get_by_text("Its end was left out").wait_for()
            assert normal(rows(page)) == expected(writers, LONG)
            page.screenshot(path=tmp_path / f"{scheme}.png")
            assert len(requested) > 5 and [url for url in requested if not url.startswith(page_address)] == []


@browser.needed
def test_two_people_at_once_each_get_their_own(page_address, writers):
    theirs = [[f"{number}. {dialogue}" for number in range(3)] for dialogue in (FIRST, SECOND)]
    wanted = {dialogue: expected(writers, dialogue) for dialogues in theirs for dialogue in dialogues}
    assert all(wanted[one] != wanted[other] for one, other in zip(*theirs, strict=True))
    together = threading.Barrier(2, timeout=60)

    def visit(dialogues):
        with browser.chromium() as chromium:  # Playwright's objects stay in the thread that made them
            page = chromium.new_page()
            page.goto(page_address)
            for dialogue in dialogues:
                page.get_by_label("Dialogue").fill(dialogue)
                together.wait()
                page.get_by_role("button", name="Summarize").click()
                page.get_by_text(f"“{dialogue[:20]}").wait_for()
                yield dialogue, normal(rows(page))

    with ThreadPoolExecutor(2) as pool:
        shown = list(pool.map(lambda dialogues: dict(visit(dialogues)), theirs))
    assert shown[0] | shown[1] == wanted
