"""Code that is copied into exported folders and runs there without this project."""
