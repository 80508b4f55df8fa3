"""Checkpoint files and modules to weights and masks."""
