"""What a run leaves on disk: its directory, events, checkpoints and the trained model."""
