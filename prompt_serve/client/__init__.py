"""Python clients of a running service: ``Client``, and ``AsyncClient`` for asyncio programs.

Needs neither torch nor bentoml. ``docs/client.md`` has examples.
"""

from prompt_serve.client.async_client import AsyncClient
from prompt_serve.client.embedding import Embeddings
from prompt_serve.client.images import ImageSource
from prompt_serve.client.scoring import ScoredImage
from prompt_serve.client.sync_client import Client

__all__ = ["AsyncClient", "Client", "Embeddings", "ImageSource", "ScoredImage"]
