"""What only the lessons use: panels, figures of records, exercise checks, both papers' tables. README.md
beside this file says which module has what.
"""
