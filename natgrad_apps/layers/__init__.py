"""Module type -> canonical form, one file a layer family."""
