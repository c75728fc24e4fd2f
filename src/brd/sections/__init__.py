"""What a recipe may say, one file a section: typed, unknown keys refused, every default a sensible one."""
