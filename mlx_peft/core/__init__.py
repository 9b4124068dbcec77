"""What every room may use: errors, the types at the border, safe reading and writing of files."""
