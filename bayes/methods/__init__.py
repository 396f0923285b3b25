"""One file a family of methods."""
