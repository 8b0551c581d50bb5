"""Scores, the parts: intervals, comparisons, tables, spectra, regions and significance."""
