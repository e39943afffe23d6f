"""Evaluations of a run directory: zero-shot classification and phrase grounding."""
