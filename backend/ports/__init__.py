"""What the services need from the world, as Protocols; adapters implement them, ``bootstrap`` chooses the adapters."""

from backend.ports.database import Database, DatabaseDump, Found
from backend.ports.executors import Executor, ReportProgress
from backend.ports.files import ArtifactStore, Cleanable, FeatureStore
from backend.ports.images import CachedImage, Embedder, EmbedderBackbone, Embedding, ImageSource
from backend.ports.label_studio import (
    ConnectedBackend,
    HealthProbe,
    LabelStudioGateway,
    LabelStudioInspector,
    LabelStudioServer,
    UrlVerdict,
)
from backend.ports.machine import Clock, DiskSpace, EmbedderState, GpuMemory, Machine
from backend.ports.stores import (
    AnnotationStore,
    BackboneStore,
    JobStore,
    ProjectStore,
    Stores,
    TaskStore,
    VersionStore,
    ViewStore,
)

__all__ = [
    "AnnotationStore",
    "ArtifactStore",
    "BackboneStore",
    "CachedImage",
    "Cleanable",
    "Clock",
    "ConnectedBackend",
    "Database",
    "DatabaseDump",
    "DiskSpace",
    "Embedder",
    "EmbedderBackbone",
    "EmbedderState",
    "Embedding",
    "Executor",
    "FeatureStore",
    "Found",
    "GpuMemory",
    "HealthProbe",
    "ImageSource",
    "JobStore",
    "LabelStudioGateway",
    "LabelStudioInspector",
    "LabelStudioServer",
    "Machine",
    "ProjectStore",
    "ReportProgress",
    "Stores",
    "TaskStore",
    "UrlVerdict",
    "VersionStore",
    "ViewStore",
]
