"""The plugin `watch`: tells in plain words when a metric leaves its healthy range."""
