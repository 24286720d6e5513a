"""One format a file, and the registry that holds all facts of a format."""
