"""Tasks: prompt files checked, stored, changed, and resolved to class features in memory."""
