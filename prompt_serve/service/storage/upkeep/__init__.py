"""Back up, restore, check and describe a registry."""
