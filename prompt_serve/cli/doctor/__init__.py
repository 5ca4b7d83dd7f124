"""``prompt-serve doctor``: the installation, the machine, the registry and the service."""
