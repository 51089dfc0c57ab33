"""The published tables, made from tidy tables: one module per experiment."""
