"""What only the lessons use: panels, figures of records, exercise checks, both papers' tables."""
