"""The server: one backbone with many adapters over HTTP. A second root beside the commands, which only start it."""
