"""The control panel, the parts: the problem, baselines, trained controls, protocols, the guard against leakage."""
