"""Networks: the zoo, and finding a net by name."""
