"""The manifest: a network as data, from a module and into one (spec/pemn.md section 8)."""
