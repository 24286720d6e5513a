"""Which device a worker trains on, and who hands GPUs out."""
