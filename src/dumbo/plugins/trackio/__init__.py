"""The plugin `trackio`: the run's metrics and configuration in Trackio."""
