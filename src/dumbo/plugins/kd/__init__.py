"""Training on what a teacher says of every token: live, recorded, or from a server."""
