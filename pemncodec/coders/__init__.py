"""Coders: pure functions between values and bytes, one coder a file."""
