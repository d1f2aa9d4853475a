"""The notebooks in JupyterLab, in a real browser: run from top to bottom, and looked at in both themes."""

import json
import os
import sys
import time

import browser
import nbformat
import papermill
import pytest

from dialogue_summarization import data, experiments, report, runs
from dialogue_summarization.commands.notebooks import NOTEBOOKS

FOLDER = data.ROOT / "notebooks"
ALL = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
THEMES = ("JupyterLab Light", "JupyterLab Dark")
RUNS = ("zero-shot", "full", "lora-balanced")
TITLES = [report.title_of(name, experiments.method(name).peft) for name in RUNS]
SETTINGS = {  # all cells are in the page at once, and nothing is asked
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
# JupyterLab whose kernels are forked: seven that each import everything would take as long as all else here.
SERVER = f"""
import sys
sys.path.insert(0, {str(data.ROOT / "tests")!r})
import forked
from jupyterlab.labapp import main
with forked.kernels():
    main()
"""
# Open a notebook and ask for all of its cells to be run; end its kernel, and close it without being asked to save it.
RUN = """async path => {
    const notebook = await jupyterapp.commands.execute('docmanager:open', {path})
    await notebook.context.ready
    await notebook.revealed
    await notebook.sessionContext.ready  // until then it asks for a kernel
    void jupyterapp.commands.execute('notebook:run-all-cells')
}"""
END = """async () => {
    const notebook = jupyterapp.shell.currentWidget
    await notebook.sessionContext.shutdown()
    notebook.dispose()
}"""
RAN = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText)
    return prompts.length && prompts.every(prompt => /\\d/.test(prompt))
}"""
# The least contrast of text in tables to what is behind it, as WCAG 2 has it (4.5 is its bound for plain text).
CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number)
    const light = colour => colour.slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0)
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = rgb(getComputedStyle(element).backgroundColor)
            if (colour.length === 3 || colour[3] > 0.5) return colour
        }
        return [255, 255, 255]
    }
    const cells = [...document.querySelectorAll('.jp-OutputArea-output td, .jp-OutputArea-output th')]
    const contrasts = cells.filter(cell => cell.innerText.trim()).map(cell => {
        const both = [light(rgb(getComputedStyle(cell).color)), light(behind(cell))].sort((a, b) => b - a)
        return (both[0] + 0.05) / (both[1] + 0.05)
    })
    return Math.min(...contrasts)
}"""

pytestmark = browser.needed


@pytest.fixture(scope="module")
def lab(tiny_models, tiny_data, tmp_path_factory):
    """The address of a JupyterLab of its own, over copies of the notebooks whose parameters ask for a tiny model."""
    place = tmp_path_factory.mktemp("lab")
    asked = {"MODEL": str(tiny_models["llama"]), "DATASET": str(tiny_data), "OUTPUTS": str(place / "outputs")}
    asked["RUNS"] = ",".join(RUNS)
    (place / "notebooks").mkdir()
    (place / "outputs").mkdir()
    for name in ("benchmarks", "reference"):  # notebooks that read committed records find them from where they are
        (place / "outputs" / name).symlink_to(runs.OUTPUTS / name)
    for name in ALL:
        target = place / "notebooks" / f"{name}.ipynb"
        papermill.execute_notebook(str(FOLDER / target.name), str(target), asked, prepare_only=True, progress_bar=False)
        notebook = nbformat.read(target, as_version=4)
        for cell in notebook.cells:  # what is seen then has been made here
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, target)
    for name, values in SETTINGS.items():
        path = place / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(place / folder) for name, folder in folders.items()}
    )
    line = [sys.executable, "-c", SERVER, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    line += ["--ServerApp.port=0", "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={place / 'notebooks'}"]
    with (
        open(place / "log.txt", "w", encoding="utf-8") as log,
        browser.started(line, env=environment, stdout=log, stderr=log) as server,
    ):
        for _ in range(600):
            servers = list((place / "runtime").glob("jpserver-*.json"))
            if servers:
                break
            assert server.poll() is None, (place / "log.txt").read_text("utf-8")
            time.sleep(0.1)
        yield json.loads(servers[0].read_text("utf-8"))


def test_every_notebook_runs_and_can_be_read_in_both_themes(lab, tmp_path):
    assert set(NOTEBOOKS) <= set(ALL)
    with browser.chromium() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"{lab['url']}lab?reset&token={lab['token']}")
        page.wait_for_function("window.jupyterapp && jupyterapp.restored.then(() => true)")
        for name in ALL:  # in order: the fourth reads what the first three made
            page.evaluate(RUN, f"{name}.ipynb")
            page.wait_for_function(RAN, polling=500, timeout=300_000)  # else at each frame of the page
            look_at(page, name, tmp_path)
            if name == NOTEBOOKS[3]:
                names = page.locator(".jp-OutputArea-output").last.locator("tbody th").all_inner_texts()
                assert names == TITLES, "each model generates a summary"
            page.evaluate(END)


def look_at(page, name, folder):
    """Results and figures are there, warnings are not, and tables can be read."""
    shown = page.locator(".jp-OutputArea-output")
    for kind in ("stderr", "error"):
        assert page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]').all_inner_texts() == [], name
    if name in NOTEBOOKS:
        assert shown.locator("table").count(), f"{name} shows no table"
        sizes = shown.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert sizes and min(sizes) > 300, f"{name} shows no figure"
    for theme in THEMES:
        page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: '{theme}'}})")
        page.wait_for_function(f"document.body.dataset.jpThemeName === '{theme}'")
        page.wait_for_timeout(300)  # the colours fade
        assert page.evaluate(CONTRAST) > 4.5, f"{name}, {theme}"
        page.screenshot(path=folder / f"{name} {theme}.png")
