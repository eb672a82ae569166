"""Figures, tables and the report of a study, from the tables in its results folder alone."""
