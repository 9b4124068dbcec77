"""Adapters on disk, each method as Hugging Face PEFT keeps it."""
