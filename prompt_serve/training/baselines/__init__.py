"""Prompt-learning methods of other papers, trained and stored like ours, for comparison."""
