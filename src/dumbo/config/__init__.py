"""The configuration: where it is read, what it may say, and how its mistakes are explained. Imports no torch."""
