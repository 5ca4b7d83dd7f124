"""One file per step; see ``prompt_serve.service.storage.migrations``."""
