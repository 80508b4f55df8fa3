"""Seed or vector to weights, and back (spec/pemn.md section 5)."""
