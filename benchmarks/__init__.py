"""How fast the library is, beside raw clients and beside its alternatives, in one run."""
