"""Shared by every part and independent of sentences: errors, atomic writes, command-line options, devices."""
