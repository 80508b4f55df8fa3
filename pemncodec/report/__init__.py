"""What models cost in a .pemn file and in other forms."""
