"""What is minimised, on which inputs, by which optimiser."""
