"""Checkpoints: whole or not there, checked file by file, and what a run needs to go on exactly where it was."""
