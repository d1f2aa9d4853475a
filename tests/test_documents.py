"""README and guide: tables come from the records, links lead somewhere, commands are known to the command line.

`python tests/test_documents.py` writes the tables anew.
"""

import re
import shlex

import pytest

from dialogue_summarization import benchmark, cli, data, experiments, report, results, runs, study

DOCUMENTS = ("README.md", "GPU_OPTIMIZATION_GUIDE.md", "data/README.md")


def tables():
    """Document, name of the block, and what belongs into it."""
    test = data.load(experiments.experiment("quickstart"))["test"]
    made = [
        runs.read(path.parent) for path in (runs.OUTPUTS / "reference" / "quickstart").glob("*/seed-0/metrics.json")
    ]
    made.sort(key=lambda run: experiments.STUDY_RUNS.index(run.name))
    table = report.results(made, test).rename(index=lambda name: name.removesuffix(" (reference)"))
    device, date = made[0].environment["device"], made[0].date
    about = f"`{report.signature(test)}`\n\nMade on {date}, device: {device} ({made[0].environment['system']})."
    yield "README.md", "results", f"{report.to_markdown(table)}\n\n{about}"
    yield "GPU_OPTIMIZATION_GUIDE.md", "benchmarks", report.to_markdown(benchmark.table())


def made_and_test():
    test = data.load(experiments.experiment("quickstart"))["test"]
    return runs.collect("quickstart", "nowhere"), test


def test_result_files_are_those_of_the_records(tmp_path):
    written = results.write(*made_and_test(), tmp_path)
    assert len(written) == 2
    for path in written:
        committed = runs.OUTPUTS / "reference" / "quickstart" / path.name
        assert path.read_text("utf-8") == committed.read_text("utf-8"), "run python tests/test_documents.py"


def block(name):
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)


def test_tables_are_those_of_the_records():
    checked = 0
    for document, name, content in tables():
        text = (data.ROOT / document).read_text("utf-8")
        assert block(name).search(text)[0] == f"\n{content}\n\n", f"{document}: run python tests/test_documents.py"
        checked += 1
    assert checked == 2


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = data.ROOT / document
    links = re.findall(r"\]\((?!https?://)([^)#]*)", path.read_text("utf-8"))
    assert [link for link in links if link and not (path.parent / link).exists()] == []


def test_commands_are_known():
    text = (data.ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    commands = [line.removeprefix("uv run ") for line in lines if "study" in line]
    assert len(commands) >= 8
    for command in commands:
        arguments = shlex.split(command.partition(" ")[2])
        if arguments and arguments[0] != "--help":
            assert cli._parser().parse_args(arguments).run


def test_the_snippet_in_the_readme_is_of_this_interface(tiny, monkeypatch, capsys, tmp_path):
    code = re.search(r"```python\n(.*?)```", (data.ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    monkeypatch.setitem(experiments.EXPERIMENTS, "quickstart", tiny)
    monkeypatch.setattr(study.run, "__kwdefaults__", {"outputs": tmp_path, "force": False})
    exec(code, {})
    assert "lora-balanced" in capsys.readouterr().out


if __name__ == "__main__":
    results.write(*made_and_test(), runs.OUTPUTS / "reference" / "quickstart")
    for document, name, content in tables():
        path = data.ROOT / document
        text = path.read_text("utf-8")
        path.write_text(block(name).sub(lambda _, new=content: f"\n{new}\n\n", text), encoding="utf-8", newline="\n")
