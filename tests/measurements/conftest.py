"""What tests of measurements share."""

import json

import helpers
import pytest
from helpers import tiny_experiment

from dialogue_summarization import models
from measurements import tables


@pytest.fixture
def build(tiny_models, tiny_data):
    """`short_training.build` with tiny models, always whole."""

    def fresh(model, method):
        family = "t5" if model.startswith("t5") else "llama"
        return models.load_model(tiny_experiment(tiny_models[family], tiny_data))

    return fresh


@pytest.fixture
def write(tmp_path):
    """Records in a folder, as they are read."""

    def records(*entries):
        for entry in entries:
            (tmp_path / f"{entry['name']}.json").write_text(json.dumps(entry), encoding="utf-8")
        return tables.load(tmp_path)

    return records


@pytest.fixture(scope="session")
def cells():
    return helpers.run_cells
