"""The command `study`: one module per command, or for a few that belong together."""
