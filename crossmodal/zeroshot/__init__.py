"""Zero-shot classification: class prompts, classifier, figures."""
