"""Other libraries, each in the best configuration that keeps the same guarantee."""
