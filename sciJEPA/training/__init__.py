"""Pretraining, the parts: what is logged and checked on the way, schedules, several processes."""
