"""Rows on their way to the net: bytes by URI, sources, shards and their manifest, sampling order, loader.

Numpy and Arrow only: this room knows neither Spark nor torch.
"""
