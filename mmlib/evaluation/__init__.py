"""Evaluation: integer counts first, ratios last; every subset of the sensors; means with their spread."""
