"""Soaks: the promises under injected faults, for minutes; see run.py. The short forms of most are in the suite."""
