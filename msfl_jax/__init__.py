"""Pretrains, evaluates and ships a chest-radiograph vision-language foundation model in JAX."""
