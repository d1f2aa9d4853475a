"""What makes training and generation faster, and what fits them into memory, without changing what a model learns."""
