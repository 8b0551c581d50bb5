"""Forecasts, the parts: labels, rollout, the layout on disk, and verification."""
