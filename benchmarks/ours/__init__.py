"""The library as an application uses it."""
