"""Encoder -> latents, the parts: windows encoded range by range, here or on a cluster, and a store that goes on."""
