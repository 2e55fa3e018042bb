"""What is seen: the course's one visual language (figures) and its slider panels (panels)."""
