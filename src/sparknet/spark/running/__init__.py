"""A run: the driver's service, the workers' task, and who watches them."""
