"""The service without HTTP: opens the bundle, engine, batcher and registry, and connects them.

Requests go through ``core.classifier``. Tasks are found by ``core.resolver``, read through
``core.catalog``, uploaded through ``core.store`` and changed through ``core.editor``; these block,
so routes call them in ``core.threads``.
"""

import logging
import threading

from prompt_serve import __version__
from prompt_serve.bundle import Bundle, open_bundle
from prompt_serve.engines.onnx_session import available_cores
from prompt_serve.preprocess import Preprocessing
from prompt_serve.schemas import Resizing, ServiceInfo
from prompt_serve.service.byte_budget import ByteBudget
from prompt_serve.service.health import Health
from prompt_serve.service.inference.batcher import Batcher
from prompt_serve.service.inference.classifier import Classifier
from prompt_serve.service.inference.encoded_classes import EncodedClasses
from prompt_serve.service.inference.engine import Engine
from prompt_serve.service.inference.engine_choice import chosen_before
from prompt_serve.service.inference.image_decoder import ImageDecoder
from prompt_serve.service.inference.task_scorer import TaskScorer
from prompt_serve.service.observability import metrics
from prompt_serve.service.observability.startup_timer import StartupTimer
from prompt_serve.service.settings import Settings
from prompt_serve.service.storage.database import Database
from prompt_serve.service.storage.registry import Registry
from prompt_serve.service.storage.visibility import visible_revision
from prompt_serve.service.tasks.cache import TaskCache
from prompt_serve.service.tasks.catalog import TaskCatalog
from prompt_serve.service.tasks.editor import TaskEditor
from prompt_serve.service.tasks.features import TaskFeatures
from prompt_serve.service.tasks.registry_watch import RegistryWatch
from prompt_serve.service.tasks.resolver import TaskResolver
from prompt_serve.service.tasks.store import TaskStore
from prompt_serve.service.worker_threads import WorkerThreads
from prompt_serve.signing.trusted_keys import SignaturePolicy

_log = logging.getLogger(__name__)


class Core:
    """All parts of a running service.

    Args:
        settings: settings of the service.
        database: the opened registry, closed with the core; None to open that of the settings.

    Raises:
        BundleInvalid, ProviderUnavailable, NotReady: it cannot run with these settings.
    """

    def __init__(self, settings: Settings, database: Database | None = None) -> None:
        self._startup = StartupTimer()
        self.settings = settings
        self.bundle: Bundle = open_bundle(settings.bundle_path)
        self._startup.done("bundle")
        chosen = chosen_before()
        self.engine = Engine(
            self.bundle,
            cuda_device=settings.cuda_device,
            threads=settings.inference_threads or available_cores(),
            max_batch=settings.batch_size,
            engine=chosen.name if chosen else settings.engine_name,
        )
        self.engine_info = self.engine.info
        if chosen is not None:
            why = {"reason": chosen.reason, "images_per_s": chosen.images_per_s}
            self.engine_info = self.engine_info.model_copy(update=why)
        self._startup.done("sessions")
        self.engine.warm_up()
        self._startup.done("warm-up")
        self.budget = ByteBudget(settings.bytes_in_flight, metrics.bytes_in_flight.inc)
        self.threads = WorkerThreads(settings.max_changes)
        self.database = database or Database(settings.database)
        self.registry = Registry(
            self.database,
            keep_versions=settings.keep_versions,
            keep_history_days=settings.keep_history_days,
        )
        self._connect_tasks()
        self._connect_requests()
        n_tasks = self.registry.count()
        self.resolver.load_pinned()
        self._watch = RegistryWatch(self.resolver, self.settings.stale_tasks_s)
        self._startup.done("registry")
        _log.info(
            "ready in %s: %s (%s) on %s, batches of up to %d, %d tasks. Engine %s: %s",
            self._startup,
            self.bundle.manifest.backbone.id,
            self.bundle.manifest.precision,
            self.engine.provider,
            settings.batch_size,
            n_tasks,
            self.engine_info.name,
            self.engine_info.reason,
        )

    def close(self) -> None:
        """Finish admitted requests and running changes, then stop all threads."""
        self._watch.close()
        self.batcher.stop(self.settings.shutdown_timeout_s)
        self._decoder.close()
        self.health.close()
        # Computations of class features end first where they take longer than that.
        ending = threading.Timer(self.settings.shutdown_timeout_s, self._features.close)
        ending.daemon = True
        ending.start()
        self.threads.close_changes()
        ending.cancel()
        self._features.close()
        self.threads.close()
        self.database.close()

    async def info(self) -> ServiceInfo:
        """Return the backbone, the execution providers that run, and the limits."""
        manifest = self.bundle.manifest
        revision, count = await self.registry_state()
        return ServiceInfo(
            version=__version__,
            backbone=manifest.backbone,
            precision=manifest.precision,
            image_size=manifest.preprocessing.image_size,
            resizing=_resizing_of(manifest.preprocessing),
            logit_scale=manifest.logit_scale,
            provider=self.engine.provider,
            text_provider=self.engine.text_provider,
            device=self.settings.device,
            runtime=self.engine.runtime,
            engine=self.engine_info,
            cold_start_s=self._startup.seconds,
            tasks=count,
            revision=visible_revision(revision),
            limits=self.settings.limits,
        )

    async def registry_state(self) -> tuple[int, int]:
        """Return the revision of the registry and the number of tasks."""
        known = await self._known.result()
        count = None if known is None else self.resolver.known_count(known)
        if known is None or count is None:
            return await self.threads.read(self._read_state)
        return known.revision, count

    def _read_state(self) -> tuple[int, int]:
        self.registry.revision()  # raises in an outage, in which the resolver goes on
        known = self.resolver.read_known()
        return known.revision, self.resolver.count(known)

    @property
    def image_size(self) -> int:
        """Side S of the square images that the image tower takes, in pixels."""
        return self.bundle.manifest.preprocessing.image_size

    @property
    def embedding_width(self) -> int:
        """Width E of an embedding."""
        return self.bundle.manifest.backbone.embed_dim

    def _connect_tasks(self) -> None:
        fingerprint = self.bundle.manifest.backbone.fingerprint
        cache = TaskCache(self.settings.feature_cache_bytes)
        signatures = SignaturePolicy(self.settings.trusted_keys_path)
        self._features = TaskFeatures(
            self.registry,
            self.bundle,
            EncodedClasses(self.engine.encode_text),
            self.engine.image_rows,
        )
        self.resolver = TaskResolver(
            self.registry, self._features, cache, self.settings.stale_tasks_s
        )
        self._known = self.threads.shared_read(self.resolver.read_known)
        self.database.after_change = self.resolver.end_outage
        self.catalog = TaskCatalog(self.registry, fingerprint)
        self.store = TaskStore(self.registry, self._features, cache, self.catalog, signatures)
        self.editor = TaskEditor(self.registry, self.resolver, cache, self.catalog, signatures)

    def _connect_requests(self) -> None:
        settings, manifest = self.settings, self.bundle.manifest
        self._decoder = ImageDecoder(
            manifest.preprocessing, settings.max_image_pixels, self.budget.reserved
        )
        self.batcher = Batcher(
            self._decoder,
            self.engine.encode_images,
            max_batch=settings.batch_size,
            max_queue_images=settings.max_queue_images,
            max_queue_bytes=settings.max_queue_bytes,
            max_queue_delay_ms=settings.max_queue_delay_ms,
            decode_threads=settings.decode_threads or min(16, available_cores()),
            decode_quickly=self._decoder.quickly,
            one_round=settings.cuda_device is None,
        )
        self.health = Health(
            self.batcher,
            self.engine.check_text_encoder,
            lambda: self.engine.last_text_success,
            self.resolver,
            self.database,
            settings.database,
            self.engine.slowest_batch_s,
        )
        self.classifier = Classifier(
            settings,
            manifest,
            batcher=self.batcher,
            scorer=TaskScorer(
                settings,
                manifest,
                resolver=self.resolver,
                threads=self.threads,
                known=self._known,
            ),
        )


def _resizing_of(preprocessing: Preprocessing) -> Resizing:
    return Resizing(
        interpolation=preprocessing.interpolation,
        resize_mode=preprocessing.resize_mode,
        decoding=preprocessing.decoding,
    )
