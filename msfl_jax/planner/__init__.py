"""What a run will need and how fast it can be on machines that are not at hand: the real step, compiled for them on this CPU, and formulas."""
