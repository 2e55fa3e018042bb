"""Data: the procedural sensor world, the prepared on-disk layout, joint transforms, and sensors that fail."""
