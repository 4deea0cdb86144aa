"""What a benchmark asks of a model, one task a file."""
