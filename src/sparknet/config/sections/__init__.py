"""The sections of a run's configuration, one a file, each with the rules between its keys."""
