"""The driver's decisions: who takes part, which round counts, what is done after it.

Pure: no I/O, no threads, no clock.
"""
