"""The verbs, a module each; what is heavy they import when they run."""
