"""The frozen CLIP: loading it, and running its towers with learned vectors."""
