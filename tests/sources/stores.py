"""Object stores on this machine, each with its real client: S3, Google Cloud Storage, the hub."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.sources.hub_files import Hub, running_hub
from tests.sources.labeled_forms import upload

# Publishes the source that lies in a folder, which is removed; returns its URL.
Publish = Callable[[Path, Path], str]


@contextmanager
def running_s3() -> Iterator[Any]:
    """Run an S3 server, which the environment names; yield its file system."""
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def running_gcs() -> Iterator[Any]:
    """Run a server of Google Cloud Storage, which the environment names."""
    server_module = pytest.importorskip("gcp_storage_emulator.server")
    gcsfs = pytest.importorskip("gcsfs")
    server = server_module.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    port = server._api._httpd.server_port
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield gcsfs.GCSFileSystem()
        gcsfs.GCSFileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def bucket_store(running: Any, protocol: str) -> Iterator[Publish]:
    with running() as files:
        names: list[str] = []

        def publish(source: Path, root: Path) -> str:
            names.append(f"pets-{len(names)}")
            files.mkdir(names[-1])
            return f"{protocol}://{upload(files, source, root, names[-1])}"

        yield publish


@contextmanager
def configured_hub() -> Iterator[Hub]:
    """Run a hub; ``hf`` is configured as fsspec reads it from its settings."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    import fsspec.config

    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.url})
        huggingface_hub.HfFileSystem.clear_instance_cache()
        yield hub
        huggingface_hub.HfFileSystem.clear_instance_cache()


@contextmanager
def hub_store() -> Iterator[Publish]:
    """Data sets of a hub."""
    with configured_hub() as hub:

        def publish(source: Path, root: Path) -> str:
            name = f"someone/pets-{len(hub.datasets)}"
            hub.add(name, root)
            shutil.rmtree(root)
            return f"hf://datasets/{name}/{source.relative_to(root).as_posix()}".removesuffix("/.")

        yield publish
