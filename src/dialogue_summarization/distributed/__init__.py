"""Runs made by several processes, one per GPU: their trainer, their launch, and the twin of `study.run`."""
