"""Masked weights that stay bits and a prototype while a network runs."""
