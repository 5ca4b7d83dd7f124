"""From a prompt file to class features: the format, its encodings, folding, and the text inputs."""
