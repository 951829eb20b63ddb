"""The shipped plugins, a folder each; the core imports none of them by name."""
