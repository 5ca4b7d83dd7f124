"""The papers' datasets in their usual folder layouts, and user datasets."""
