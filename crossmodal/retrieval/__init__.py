"""Retrieval: recall of paired data, indexes, search."""
