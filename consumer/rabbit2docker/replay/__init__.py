"""Replay: earlier requests chosen from the log of requests and published again, and a list of what was built."""
