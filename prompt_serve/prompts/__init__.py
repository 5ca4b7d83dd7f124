"""Prompt files, their encodings, and the path from a prompt to class features."""
