"""How good summaries are: tests, other systems, comparisons, text measures, and what a run's model knows."""
