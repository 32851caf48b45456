"""What stands behind each port, as the settings say."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from functools import cached_property

from backend.adapters.artifacts import LocalArtifacts
from backend.adapters.database import SqlDatabase
from backend.adapters.durable import exclusive_lock, write_whole
from backend.adapters.embedders import EmbedderClient
from backend.adapters.features import FeatureFiles
from backend.adapters.image_cache import ImageCache
from backend.adapters.images import ImageFetcher
from backend.adapters.machines import make_writable
from backend.adapters.measured_images import MeasuredImages
from backend.adapters.object_storage import ObjectStorage
from backend.adapters.shared_artifacts import SharedArtifacts, open_artifacts
from backend.adapters.shared_features import SharedFeatures
from backend.label_studio.client import LabelStudioClient
from backend.ports import Database, ImageSource, LabelStudioGateway
from backend.processes import embedder_address
from backend.settings import Settings


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the present moment."""
        return datetime.now(UTC)


class Adapters:
    """The world as the settings describe it, each part made when it is first asked for."""

    def __init__(self, settings: Settings, *, storage_patience_s: float = 600.0) -> None:
        """Wire for one process; ``storage_patience_s`` is how long it may wait for features of other machines."""
        self.settings = settings
        self._storage_patience_s = storage_patience_s
        self.clock = SystemClock()

    @cached_property
    def database(self) -> Database:
        """The state, migrated to the present schema."""
        make_writable(self.settings.model_dir)
        database = SqlDatabase(self.settings.resolved_database_url)
        database.migrate()
        return database

    @cached_property
    def webhook_secret(self) -> str | None:
        """What webhooks must carry: as set; else, when Basic auth is on, one of our own that outlives a restart."""
        if self.settings.webhook_secret:
            return self.settings.webhook_secret.get_secret_value()
        if not self.settings.basic_auth_user:
            return None
        path = self.settings.model_dir / "webhook_secret"
        make_writable(self.settings.model_dir)
        # web process and worker start together, and have to agree
        with exclusive_lock(path.with_name("webhook_secret.lock")):
            if not path.exists():
                write_whole(path, secrets.token_urlsafe(32).encode(), mode=0o600)
        return path.read_text()

    @cached_property
    def client(self) -> LabelStudioClient | None:
        """Label Studio's API, if the settings say where it is and who we are."""
        if not (self.settings.label_studio_url and self.settings.label_studio_api_key):
            return None
        return LabelStudioClient(
            self.settings.label_studio_url,
            self.settings.label_studio_api_key.get_secret_value(),
            webhook_secret=self.webhook_secret,
            ca_file=self._ca_file,
        )

    @property
    def _ca_file(self) -> str | None:
        return str(self.settings.requests_ca_bundle) if self.settings.requests_ca_bundle else None

    @property
    def gateway(self) -> LabelStudioGateway | None:
        """Label Studio's API as the services know it."""
        return self.client

    @cached_property
    def artifacts(self) -> LocalArtifacts | SharedArtifacts:
        """Versions and fine-tuned backbones."""
        return open_artifacts(
            self.settings.resolved_artifacts_url,
            self.settings.artifact_cache_folder,
            max_cache_bytes=self.settings.artifact_cache_bytes,
        )

    @cached_property
    def feature_files(self) -> FeatureFiles:
        """Features stored on this machine."""
        return FeatureFiles(self.settings.model_dir / "features")

    @cached_property
    def features(self) -> FeatureFiles | SharedFeatures:
        """Stored features; shared where versions are."""
        url = self.settings.resolved_artifacts_url
        if "://" not in url:
            return self.feature_files
        folder = self.settings.model_dir / "feature-exchange"
        return SharedFeatures(self.feature_files, ObjectStorage(url), folder, patience_s=self._storage_patience_s)

    @cached_property
    def image_cache(self) -> ImageCache:
        """Images on this machine."""
        return ImageCache(self.settings.model_dir / "images", max_bytes=self.settings.image_cache_bytes)

    @cached_property
    def images(self) -> ImageSource:
        """Images, through a bounded cache."""
        settings = self.settings
        fetcher = ImageFetcher(
            self.image_cache,
            label_studio_url=settings.label_studio_url,
            authorization=self.client.authorization if self.client else None,
            image_hosts=settings.image_hosts,
            local_files_root=settings.local_files_root,
            max_image_bytes=settings.max_image_bytes,
            ca_file=self._ca_file,
        )
        return MeasuredImages(fetcher)

    @cached_property
    def embedder(self) -> EmbedderClient:
        """The embedding process of this machine."""
        return EmbedderClient(embedder_address(self.settings.model_dir))
