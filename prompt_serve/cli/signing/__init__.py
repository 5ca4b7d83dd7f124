"""Commands about signatures of prompt files."""
