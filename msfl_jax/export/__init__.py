"""Weights in and out: one table of names, and what reads and writes files by it."""
