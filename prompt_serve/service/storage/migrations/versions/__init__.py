"""One file a step; see ``prompt_serve.service.storage.migrations``."""
