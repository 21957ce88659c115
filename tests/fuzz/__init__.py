"""Fuzzing of every door: what comes from outside is read or refused with words, and nothing of it does harm.

The suite runs a few inputs at each door; `make fuzz INPUTS=100000` runs as many as asked for.
"""
