"""The plugin `profile`: measures where the time of some training steps goes."""
