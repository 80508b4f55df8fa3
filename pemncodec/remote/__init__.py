"""Files that are not on this machine: their names, and how they are read and written."""
