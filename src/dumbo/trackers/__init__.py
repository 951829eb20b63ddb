"""What all trackers share: options, the configuration as flat keys, how a run opens and ends; knows no tracker."""
