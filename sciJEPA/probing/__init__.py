"""Probes, the kinds beside the ridge: analogs, perceptron, attention; and probes of an index."""
