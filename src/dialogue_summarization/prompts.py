"""From a dialogue to the text that a model reads: one prompt for every run and stage of an experiment."""

# The starting study's prompt. T5's tokenizer drops newlines, so turns run together there: kept, to stay comparable.
PROMPT = "summarize the following conversation:\n{dialogue}\nsummary: "
# For SmolLM2 on DialogSum: the best of five on validation, zero-shot (search.csv of the study's records).
BRIEF = "Briefly summarize what #Person1# and #Person2# talk about in one sentence.\n\n{dialogue}"
