"""Commands that learn, evaluate, inspect and export."""
