"""DataFrames: opening a source as one, and bringing its columns into the form that preparation takes."""
