"""One static page about any mix of results: what was measured, as curves, tables and pictures."""
