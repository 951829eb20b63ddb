"""Lets routers of mixtures of experts learn from experts that they did not choose."""
