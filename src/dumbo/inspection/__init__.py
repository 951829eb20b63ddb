"""Looks at rows as a run would train on them: their tokens, what is trained, and what is strange about them."""
