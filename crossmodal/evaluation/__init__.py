"""The evaluator: benchmarks that are data, figures with intervals, results that may be compared."""
