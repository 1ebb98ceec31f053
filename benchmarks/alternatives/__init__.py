"""What users would otherwise write, as plain scripts."""
