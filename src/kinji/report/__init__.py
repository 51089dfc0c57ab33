"""Figures, tables, notebooks and the report, all made from tidy tables and verdicts."""
