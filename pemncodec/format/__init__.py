"""The bytes of a file: container, header, writer, reader (spec/pemn.md sections 2 to 4)."""
