"""Where pairs come from (``sources``), how they are varied (``views``) and batched (``loader``)."""
