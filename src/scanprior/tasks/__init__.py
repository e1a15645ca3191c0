"""Tasks: what is learned from labels. A task is a head, a loss, and the one place of its probabilities."""
