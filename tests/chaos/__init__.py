"""Chaos: real processes, random faults out of a seed, and the promises checked afterwards; see `python -m tests.chaos --help`."""
