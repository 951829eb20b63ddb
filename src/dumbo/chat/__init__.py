"""Conversations as text: rendered by chat templates, with the origin of every character known."""
