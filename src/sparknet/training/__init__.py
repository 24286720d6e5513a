"""The worker's loop and the authority it obeys: local steps, synchronisation, membership, checkpoints."""
