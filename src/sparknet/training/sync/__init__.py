"""How replicas agree: one flat buffer of weights, the groups that exchange it, the step on what came out."""
