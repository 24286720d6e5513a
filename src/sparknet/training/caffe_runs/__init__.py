"""Caffe's files as runs: solvers and data layers become settings, checkpoints become snapshots.

The generic loop knows nothing of it.
"""
