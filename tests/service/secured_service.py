"""A started service with API keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from prompt_serve.service.permissions import Permissions, Role
from prompt_serve.service.storage.api_keys import Keys
from prompt_serve.service.storage.database import Database
from tests.service.process import Served


@dataclass(frozen=True)
class SecuredService:
    """A started service, and a key of each role."""

    served: Served
    infer: str
    admin: str

    def client(self, key: str | None, **headers: str) -> httpx.Client:
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return httpx.Client(base_url=self.served.url, headers=headers, timeout=30)


@contextmanager
def open_keys(home: Path) -> Iterator[Keys]:
    """Open the keys of the service in ``home``, as the command line does."""
    database = Database(f"sqlite:///{home / 'registry.db'}")
    try:
        yield Keys(database)
    finally:
        database.close()


def make_keys(home: Path, **roles: Role | Permissions) -> dict[str, str]:
    """Create keys; returns their tokens by name."""
    with open_keys(home) as keys:
        return {name: keys.create(name, role)[0] for name, role in roles.items()}
