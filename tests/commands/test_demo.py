"""Try it yourself: the summaries of runs for any dialogue, on a web page in a real browser."""

import os
import re
import sys

import browser
import bs4
import pytest

from dialogue_summarization import data, generation, report, runs, study
from dialogue_summarization.commands import cli, demo

SCRIPT = "#Person1#: <script>window.hit = 1</script><img src=x onerror='window.hit = 2'> ${window.hit = 3} Ben?"
FIRST = "#Person1#: Hello Ann, did you bring a red bike?\n#Person2#: No, I left it at home."
SECOND = "#Person1#: Eva, we have to wait until 9 o'clock.\n#Person2#: I am sorry, Gus."
LONG = "#Person1#: This is a long turn about a violin.\n" * 500


@pytest.fixture(scope="module")
def made(made_once, tmp_path_factory):
    """An untrained run and two trained ones, in a folder of outputs."""
    outputs = tmp_path_factory.mktemp("outputs")
    for name in ("zero-shot", "full", "lora-balanced"):
        made_once("llama", name, outputs)
    return outputs


@pytest.fixture(scope="module")
def answer(made):
    """From a dialogue to the page's HTML."""
    records = demo.loadable(runs.collect("tiny", made), "tiny")
    bundles = [study.load_run(run) for run in records]
    return lambda dialogue: demo.answer(records, bundles, dialogue)


def table(shown):
    """The runs in HTML, each with its summary and its seconds."""
    lines = bs4.BeautifulSoup(shown, "html.parser").find_all("tr")[1:]
    return {line.th.text: [cell.get_text("\n") for cell in line.find_all("td")] for line in lines}


def test_summaries_are_those_of_the_records(made, answer, tiny_data):
    records = runs.collect("tiny", made)
    row = data.load_source(str(tiny_data))["test"][0]
    for end in ("\r\n", "\r", "\u2028"):
        shown = table(answer(f"  {row['dialogue']}\n".replace("\n", end)))
        assert list(shown) == [report.display_name(run) for run in records] and len(records) == 3
        assert [summary for summary, _ in shown.values()] == [run.predictions["prediction"][0] for run in records]
        assert all(float(seconds) >= 0 for _, seconds in shown.values())


@pytest.mark.parametrize("dialogue", ["", " \n\t", "\r\n"])
def test_an_empty_dialogue_gets_a_message_and_no_summary(answer, dialogue):
    assert "The dialogue is empty" in answer(dialogue) and "<table" not in answer(dialogue)


def test_a_dialogue_that_is_cut_is_said_to_be(answer):
    shown = answer(LONG)
    whole, taken = re.search(r"takes: ([\d,]+) tokens with the prompt, of ([\d,]+)", shown).groups()
    assert taken == "256" and int(whole.replace(",", "")) > 5_000 and "left out" in shown and "<table" in shown
    assert "left out" not in answer(FIRST)


def test_markup_and_halves_of_characters_are_shown_as_text(answer):
    shown = answer(SCRIPT + " \ud800")
    assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown


def test_a_summary_with_markup_is_shown_as_text(made, answer, monkeypatch):
    monkeypatch.setattr(generation, "summarize", lambda *_, **__: [SCRIPT])
    shown = answer(FIRST)
    assert "<script" not in shown and "<img" not in shown and table(shown)["full"][0] == SCRIPT


def test_runs_without_weights_are_left_out_and_named(made, capsys):
    records = runs.collect("tiny", made)
    (made / "tiny/full/seed-0/model").rename(made / "elsewhere")
    try:
        loadable = demo.loadable(records, "tiny")
    finally:
        (made / "elsewhere").rename(made / "tiny/full/seed-0/model")
    assert [run.name for run in loadable] == ["zero-shot", "lora-balanced"]
    assert "here: full.\n`study tiny --runs full` makes them" in capsys.readouterr().out


def test_where_no_weights_are_a_line_says_how_to_make_them(capsys):
    assert cli.main(["demo", "quickstart", "--outputs", "nowhere"]) == 1
    assert "`study quickstart` makes them" in capsys.readouterr().err


def test_without_gradio_the_message_says_how_to_have_it(monkeypatch, made, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo", "tiny", "--outputs", str(made)]) == 1
    assert "--extra demo" in capsys.readouterr().err


def test_a_socks_proxy_is_named(monkeypatch, made, tmp_path, capsys):
    (tmp_path / "gradio.py").write_text("raise ImportError(\"Using SOCKS proxy, but 'socksio' is not installed.\")")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gradio", raising=False)
    assert cli.main(["demo", "tiny", "--outputs", str(made)]) == 1
    assert "uv pip install socksio" in capsys.readouterr().err


# `study demo`, saying on standard output whom it connects to.
WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect":
        print("connects to", arguments[1], flush=True)
sys.addaudithook(watch)
from dialogue_summarization.commands.cli import main
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
    texts = [lines.nth(n).locator("th, td").all_inner_texts()[:2] for n in range(lines.count())]
    return [(name.strip(), " ".join(text.split())) for name, text in texts]


def expected(answer, dialogue):
    return [(name, " ".join(summary.split())) for name, (summary, _) in table(answer(dialogue)).items()]


@browser.needed
def test_the_page_in_a_browser(page_address, answer, tmp_path):
    assert page_address.startswith("http://127.0.0.1:")
    with browser.chromium() as chromium:
        for scheme in ("light", "dark"):
            page = chromium.new_page(color_scheme=scheme)
            requested, failed = [], []
            page.on("request", lambda request, urls=requested: urls.append(request.url))
            page.on("pageerror", lambda error, errors=failed: errors.append(error))
            page.goto(page_address)
            ask(page, SCRIPT)
            assert rows(page) == expected(answer, SCRIPT)
            assert "<script>window.hit = 1</script>" in page.locator(".html-container").inner_text()
            assert page.evaluate("window.hit") is None and not failed
            ask(page, "  ")
            page.get_by_text("The dialogue is empty").wait_for()
            assert page.locator("td").count() == 0
            ask(page, LONG)
            page.get_by_text("Its end was left out").wait_for()
            assert rows(page) == expected(answer, LONG)
            page.screenshot(path=tmp_path / f"{scheme}.png")
            assert len(requested) > 5 and [url for url in requested if not url.startswith(page_address)] == []


@browser.needed
def test_two_people_at_once_each_get_their_own(page_address, answer):
    theirs = [[f"{number}. {dialogue}" for number in range(3)] for dialogue in (FIRST, SECOND)]
    wanted = {dialogue: expected(answer, dialogue) for dialogues in theirs for dialogue in dialogues}
    assert all(wanted[one] != wanted[other] for one, other in zip(*theirs, strict=True))
    shown = {}
    with browser.chromium() as chromium:
        pages = [chromium.new_context().new_page() for _ in theirs]
        for page in pages:
            page.goto(page_address)
        for both in zip(*theirs, strict=True):
            for page, dialogue in zip(pages, both, strict=True):
                page.get_by_label("Dialogue").fill(dialogue)
            for page in pages:  # the second asks while the first waits
                page.get_by_role("button", name="Summarize").click()
            for page, dialogue in zip(pages, both, strict=True):
                page.get_by_text(f"“{dialogue[:20]}").wait_for()
                shown[dialogue] = rows(page)
    assert shown == wanted
