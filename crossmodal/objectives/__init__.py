"""Training objectives, one idea a file; named in a recipe, known nowhere else."""
