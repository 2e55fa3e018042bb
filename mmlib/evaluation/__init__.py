"""Evaluation: integer confusion matrices first, ratios last; every subset of the sensors; honest statistics."""
