"""What will be done: pure functions from a recipe, a cluster and what exists to a plan."""
