"""Conversations from rows, and tokens and labels from conversations, by Jinja templates."""
