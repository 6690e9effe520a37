"""Checkpoints with checksums, on Orbax."""
