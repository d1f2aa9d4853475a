"""The notebooks: run with a tiny model of each family, and as they are committed."""

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import forked
import matplotlib.image
import nbformat
import papermill
import pytest
from jupyter_client.provisioning import local_provisioner
from safetensors.torch import load_file

from dialogue_summarization import data, experiments, report, runs, study
from dialogue_summarization.commands import cli, execution
from dialogue_summarization.commands.execution import execute as execute_notebooks
from dialogue_summarization.commands.notebooks import NOTEBOOKS
from dialogue_summarization.errors import UserError

FOLDER = data.ROOT / "notebooks"
TAUGHT = experiments.EXPERIMENTS["quickstart"].runs
TITLES = [report.title_of(name, experiments.method(name).peft) for name in TAUGHT]
APPENDIX, GPU, SWEEP = (
    "04b_appendix",
    "05_gpu_optimization",
    "06_lora_against_full",
)  # belong to no run: `study` leaves them out
# Of any system: a drive, or folders from the root on, behind what can stand before a path in a notebook's JSON.
ABSOLUTE_PATH = re.compile(
    r"""[A-Z]:\\\\|/(home|root|tmp|Users)/|(?:(?<=[\s"'`(\[{,|=:>])|(?<=\\n)|(?<=file://))/\w+/\w"""
)
WIDGET = "application/vnd.jupyter.widget-view+json"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments):
    """The command line, with kernels that need not import what this process's server has."""
    out, err = io.StringIO(), io.StringIO()
    with forked.kernels(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def fresh(*arguments):
    """The command line as a user has it, in processes that know nothing yet."""
    line = [sys.executable, "-m", "dialogue_summarization", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT)


def execute(name, target, parameters):
    """A notebook alone, executed."""
    source = FOLDER / f"{name}.ipynb"
    given = {key: str(value) for key, value in parameters.items()}
    with forked.kernels():
        papermill.execute_notebook(
            str(source), str(target), given, kernel_name="python3", cwd=str(FOLDER), progress_bar=False
        )
    return json.dumps(outputs(target))


def cells(path, kind=None):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if kind in (None, cell["cell_type"])]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


@pytest.fixture(scope="module", params=["t5", "llama"])
def studied(request, tiny_models, tiny_data, tmp_path_factory):
    """The folder of a whole study made by the command line, with a tiny model."""
    folder = tmp_path_factory.mktemp(f"outputs_{request.param}")
    arguments = ("quickstart", "--model", tiny_models[request.param], "--dataset", tiny_data, "--outputs", folder)
    done = (fresh if request.param == "llama" else command)(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.iterdir()), arguments, done


def test_all_notebooks_run_and_are_kept_as_html(studied):
    folder, _, done = studied
    for name in NOTEBOOKS:
        executed = folder / "notebooks" / f"{name}.ipynb"
        shown = outputs(executed)
        assert not [output for output in shown if output["output_type"] == "error" or output.get("name") == "stderr"]
        assert [output for output in shown if "text/html" in output.get("data", {})], f"{name} shows no table"
        assert "<table" in executed.with_suffix(".html").read_text("utf-8")
        assert not any(WIDGET in output.get("data", {}) for output in shown)
    table = "".join(shown[-1]["data"]["text/html"])
    rows = re.findall(r"<th>([^<]*)</th>\s*<td", table)
    assert rows == TITLES and "The weights of" not in table, "each generates"
    for run in TITLES:
        assert re.search(rf"^{run} .*\d\.\d{{3}} \[", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.parametrize("studied", ["llama"], indirect=True)  # a minute each; the family changes nothing here
def test_a_second_study_loads_what_is_done(studied):
    folder, arguments, _ = studied
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/seed-0/metrics.json")}
    assert len(before) == 3
    again = command(*arguments, "--runs", "zero-shot,full")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    texts = [output["text"] for output in outputs(folder / "notebooks" / "01_zero_shot.ipynb") if "text" in output]
    assert any("loaded from the record of" in "".join(text) for text in texts)
    assert "lora-balanced" not in again.stdout


def test_the_open_path_gives_the_weights_that_run_gives(studied, tiny_models, tiny_data, tmp_path):
    folder, arguments, _ = studied
    chosen = experiments.experiment("quickstart", model=str(arguments[2]), dataset=str(tiny_data))
    for name, weights in (("full", "model/model"), ("lora-balanced", "adapter/adapter_model")):
        run = study.run(chosen, experiments.method(name), outputs=tmp_path)
        ours = load_file(run.folder / f"{weights}.safetensors")
        theirs = load_file(folder / name / "seed-0" / f"{weights}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(ours[key].equal(theirs[key]) for key in ours)


def test_evaluation_alone_shows_the_reference_records(tmp_path):
    shown = execute("04_evaluation", tmp_path / "04.ipynb", {"OUTPUTS": tmp_path / "outputs"})
    assert "comes with the project, 20" in shown and "lora-balanced (reference)" in shown
    last = "".join(json.loads(shown)[-1]["data"]["text/html"])
    assert "zero-shot (reference)</th>" in last and "adapter</th>" in last and "full" not in last, "what has parameters"


def test_a_failing_cell_is_named_and_the_notebook_kept(tmp_path):
    source = tmp_path / "failing.ipynb"
    good, bad = (nbformat.v4.new_code_cell(code) for code in ("print('so far')", "1 / 0"))
    nbformat.write(nbformat.v4.new_notebook(cells=[good, bad]), source)
    with forked.kernels(), pytest.raises(UserError, match=r"failing\.ipynb stopped in cell 2: ZeroDivisionError"):
        execute_notebooks({source: {}}, tmp_path / "executed")
    assert [output["output_type"] for output in outputs(tmp_path / "executed" / source.name)][-2:] == [
        "stream",
        "error",
    ]
    assert "so far" in (tmp_path / "executed" / "failing.html").read_text("utf-8")


def notebook_of(code, path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), path)
    return path


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", r"ended from outside, .* want of memory\. [\d.]+ of [\d.]+ GB"),
        (
            'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes.")',
            r"you tried to allocate 9 bytes\.+ [\d.]+ of [\d.]+ GB of memory are free",
        ),
    ],
)
def test_a_want_of_memory_is_named_with_what_to_do(cell, said, tmp_path):
    source = notebook_of(cell, tmp_path / "hungry.ipynb")
    with forked.kernels(), pytest.raises(UserError, match=said) as caught:
        execute_notebooks({source: {}}, tmp_path / "executed")
    assert "--runs zero-shot,lora-balanced" in str(caught.value) and (tmp_path / "executed" / source.name).exists()


def test_a_full_disk_is_named_with_the_cell_that_filled_it(tmp_path, monkeypatch):
    source = notebook_of("raise OSError(28, 'No space')", tmp_path / "large.ipynb")
    monkeypatch.setattr(execution.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with forked.kernels(), pytest.raises(UserError, match=r"(?s)stopped in cell 1: OSError.*is full: free some space"):
        execute_notebooks({source: {}}, tmp_path / "executed")


def test_kernels_are_of_this_python_whatever_else_is_installed(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"  # as another environment leaves it in the user's home
    spec.parent.mkdir(parents=True)
    other = {"argv": ["no-such-python", "{connection_file}"], "display_name": "", "language": "python"}
    spec.write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    source = notebook_of("print('ran')", tmp_path / "which.ipynb")
    with forked.kernels():
        execute_notebooks({source: {}}, tmp_path / "executed")
    assert "ran" in json.dumps(outputs(tmp_path / "executed" / source.name))


def test_a_kernel_that_does_not_start_is_said(tmp_path, monkeypatch):
    def launch(line, **options):
        return usual([sys.executable, "-c", "raise SystemExit(9)"], **options)

    usual = local_provisioner.launch_kernel
    monkeypatch.setattr(local_provisioner, "launch_kernel", launch)
    source = notebook_of("1", tmp_path / "any.ipynb")
    with pytest.raises(UserError, match=r"kernel did not start.*GB of memory are free"):
        execute_notebooks({source: {}}, tmp_path / "executed")


def test_bad_data_is_said_before_a_notebook_runs(tmp_path):
    bad = tmp_path / "data"
    bad.mkdir()
    done = forked.command("quickstart", "--dataset", bad, "--outputs", tmp_path / "outputs")
    assert done.returncode == 1 and "train.csv" in done.stderr and "Traceback" not in done.stderr


def test_what_was_measured_is_shown_with_whatever_records_there_are(tiny_models, tmp_path):
    for number, records in enumerate((runs.OUTPUTS / "benchmarks", tmp_path / "none")):
        told = {"RECORDS": records, "MODEL": tiny_models["llama" if number else "t5"]}
        shown = re.sub(r'"image/png": "[^"]*"', "", execute(GPU, tmp_path / f"{number}.ipynb", told))
        assert ("t5-base-full-plain," in shown) == (number == 1), "what is missing"
        assert "speed-up" in shown and "a GPU of " in shown and "GiB" not in shown
        assert "grouped by length" in shown and "tokens per second" in shown


@pytest.mark.parametrize("name", [*NOTEBOOKS, APPENDIX, GPU, SWEEP])
def test_committed_notebooks_render_and_read_well(name):
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text("utf-8")
    notebook = json.loads(text)
    code = cells(path, "code")
    assert len(text) < 1_000_000 and "widgets" not in notebook["metadata"]
    assert not ABSOLUTE_PATH.search(text), "an absolute path"
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert max(len("".join(cell["source"]).splitlines()) for cell in code) <= 15
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", ())] == [code[1]]
    assert not [
        output for output in outputs(path) if output["output_type"] == "error" or output.get("name") == "stderr"
    ]
    assert "outputs/quickstart" not in text and WIDGET not in text
    for output in outputs(path):
        png = output.get("data", {}).get("image/png")
        if png:
            image = matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png")
            assert image.shape[2] == 3 or image[..., 3].min() == 1, "a figure with a transparent background"
    assert code[0]["source"] == cells(FOLDER / "01_zero_shot.ipynb", "code")[0]["source"], "one set-up cell for all"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_import_nothing_that_is_slow_or_above_them(name):
    source = "\n".join("".join(cell["source"]) for cell in cells(FOLDER / f"{name}.ipynb", "code"))
    imported = set(re.findall(r"[\w.]+", " ".join(re.findall(r"^\s*(?:from|import) .*", source, re.MULTILINE))))
    assert "dialogue_summarization" in imported
    assert not imported & {"likelihood", "mbr", "commands", "measurements"}
    assert not [name for name in imported if name.startswith(("dialogue_summarization.commands", "measurements."))]
    assert ("dialogue_summarization.rouge_metric" in imported) == (name == NOTEBOOKS[0]), "it takes seconds"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_executed_study_renders(name):
    path = runs.OUTPUTS / "reference" / "smollm2-dialogsum" / "notebooks" / f"{name}.ipynb"
    text = path.read_text("utf-8")
    assert len(text) < 1_000_000 and "widgets" not in json.loads(text)["metadata"] and not ABSOLUTE_PATH.search(text)
    shown = outputs(path)
    assert not [output for output in shown if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert [output for output in shown if "text/html" in output.get("data", {})]


def snippets():
    codes = {}
    for name in NOTEBOOKS:
        for cell in cells(FOLDER / f"{name}.ipynb", "markdown"):
            if "copyable" in cell["metadata"].get("tags", ()):
                blocks = re.findall(r"```python\n(.*?)```", "".join(cell["source"]), re.DOTALL)
                codes |= {f"{name}-{number}": block for number, block in enumerate(blocks)}
    return codes


# Each with nothing but itself, in a folder of its own; in one process, which imports what they import once.
RUN_EACH = """
import json, os, sys, traceback
failed = {}
for name, code in json.load(sys.stdin).items():
    os.mkdir(name)
    os.chdir(name)
    try:
        exec(compile(code, name, "exec"), {"__name__": "__main__"})
    except BaseException:
        failed[name] = traceback.format_exc()
    os.chdir("..")
print(json.dumps(failed))
"""


@pytest.fixture(scope="module")
def failed(tiny_models, tmp_path_factory):
    """What went wrong in the copyable snippets, by their names."""
    names, codes = r'"google/flan-t5-base"|"HuggingFaceTB/SmolLM2-135M-Instruct"', {}
    for name, code in snippets().items():
        family = "t5" if "Seq2Seq" in code and "google/flan-t5-base" in code else "llama"
        codes[name] = re.sub(names, repr(str(tiny_models[family])), code)
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps(codes),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path_factory.mktemp("snippets"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", snippets())
def test_copyable_snippets_stand_alone(failed, name):
    assert "dialogue_summarization" not in snippets()[name]
    assert name not in failed, failed[name]


def test_there_are_snippets_for_both_families():
    assert len(snippets()) == 7
