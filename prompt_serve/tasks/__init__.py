"""Tasks: a prompt file and a bundle become a task, image features and tasks predictions."""
