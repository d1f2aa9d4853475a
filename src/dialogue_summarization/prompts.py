"""From a dialogue to the text that a model reads: one prompt for every model, method and stage."""

PROMPT = "summarize the following conversation:\n{dialogue}\nsummary: "


def prompt(dialogue: str) -> str:
    """The starting study's prompt around a dialogue.

    T5's tokenizer drops newlines, so that turns run together there: a known cost of this prompt, kept as published.
    """
    return PROMPT.replace("{dialogue}", dialogue)
