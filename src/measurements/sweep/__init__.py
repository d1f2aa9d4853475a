"""Many short trainings of many methods: `python -m measurements sweep SPACE --outputs DIR`."""
