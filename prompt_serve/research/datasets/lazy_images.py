"""Image sets that are listed on first use: a folder may hold a million images."""

from collections.abc import Callable, Iterator, Mapping
from functools import cache

from prompt_serve.training.data.dataset import ImageSet


class ImagesByName(Mapping[str, ImageSet]):
    """Test sets by name, read on first use and then cached."""

    def __init__(self, readers: Mapping[str, Callable[[], ImageSet]]) -> None:
        self._readers = {name: cache(reader) for name, reader in readers.items()}

    def __getitem__(self, name: str) -> ImageSet:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)
