"""Tasks: from an uploaded prompt file to class features in memory."""
