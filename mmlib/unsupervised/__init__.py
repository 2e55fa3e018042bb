"""Part B: segmentation without labels, from frozen features of several sensors, and its baselines."""
