"""Prompt files on the Hugging Face Hub: push one with a model card, pull one and verify it."""
