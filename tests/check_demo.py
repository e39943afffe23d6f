"""Holds the summary of a demo to its thresholds and exits with 1 where one is missed.

Usage: python tests/check_demo.py DIR/summary.json [--smoke]
"""

import json
import sys

# (section, name, at least): a full demo of 1,000 steps, and one of 250 steps.
FULL = [
    ("zero_shot", "pneumonia_auc", 0.87),
    ("zero_shot", "mean_auc", 0.75),
    ("grounding", "cnr", 1.2),
    ("grounding", "pointing_game", 0.45),
    ("grounding", "cnr_over_shuffled", 0.25),
]
SMOKE = [("zero_shot", "pneumonia_auc", 0.80), ("grounding", "cnr", 0.40), ("grounding", "pointing_game", 0.20)]


def main(path: str, smoke: bool) -> int:
    with open(path) as file:
        summary = json.load(file)
    summary["grounding"]["cnr_over_shuffled"] = (
        summary["grounding"]["cnr"] - summary["grounding"]["cnr_shuffled_phrases"]
    )
    missed = 0
    for section, name, least in SMOKE if smoke else FULL:
        value = summary[section][name]
        holds = value >= least  # False for NaN
        missed += not holds
        print(f"{'ok    ' if holds else 'MISSED'}  {section}.{name}  {value:.3f}  at least {least}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--smoke" in sys.argv[2:]))
