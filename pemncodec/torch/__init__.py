"""Everything between torch and `Contents`."""
