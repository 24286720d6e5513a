"""What a net file says, before anything is built: states and rules, and the upgrades of older generations."""
