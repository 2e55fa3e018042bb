"""Part A: a segmenter for any subset of sensors, its objective and its training."""
