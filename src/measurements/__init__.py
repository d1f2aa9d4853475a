"""How the committed records and tables were made: `python -m measurements NAME` in a clone of the repository."""
