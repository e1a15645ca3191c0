"""Data: manifests, readers, checks, splits, the prepared store and its loader."""
