"""Train many prompts: datasets, methods, numbers of shots and seeds of one file."""
