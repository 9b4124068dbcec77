"""What the rooms above a backend ask of it, and the one place where a name is turned into code."""
