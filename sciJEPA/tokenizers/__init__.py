"""Samples -> tokens: the only folder that is split by domain. One file a domain; see `base` for the contract."""
