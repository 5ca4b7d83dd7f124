"""Python clients of a running service: ``Client``, and ``AsyncClient`` for asyncio programs.

Needs neither torch nor bentoml. ``docs/client.md`` has examples.
"""

from prompt_serve.client.async_client import AsyncClient
from prompt_serve.client.embedding import Embeddings
from prompt_serve.client.sync_client import Client
from prompt_serve.images.image_source import ImageSource
from prompt_serve.results import ScoredImage, ScoreStream

__all__ = ["AsyncClient", "Client", "Embeddings", "ImageSource", "ScoreStream", "ScoredImage"]
