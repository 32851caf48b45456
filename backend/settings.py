"""All settings: the only module that reads the environment.

Every field is documented in README's table, which a test keeps equal to this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.errors import ConfigurationError

MIB = 2**20
SECRETS_DIR = Path("/run/secrets")


class Settings(BaseSettings):
    """Settings, each read from the environment variable of the same name in capitals.

    What the environment does not say may stand in a file of that name in ``/run/secrets``, in capitals or not.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    label_studio_url: str | None = Field(None, description="Where Label Studio is, as Tandem reaches it")
    label_studio_api_key: SecretStr | None = Field(
        None, description="Personal access token or legacy token of a Label Studio user who may see the projects"
    )
    public_url: str | None = Field(
        None, description="Where Tandem is, as Label Studio reaches it: used to find and repair the webhook"
    )
    model_dir: Path = Field(Path("tandem-data"), description="All local state")
    host: str = Field("0.0.0.0", description="Address to listen on")  # noqa: S104 - a server in a container
    port: int = Field(9090, ge=1, le=65535, description="Port to listen on")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port of its own for `/metrics`, open to whoever reaches it"
    )
    metrics_host: str = Field("127.0.0.1", description="Address that `METRICS_PORT` listens on")
    workers: int = Field(1, ge=1, le=64, description="Web processes")
    threads: int = Field(
        16, ge=1, le=64, description="Requests for suggestions that each web process works on at a time"
    )
    basic_auth_user: str | None = Field(
        None, description="User for Basic auth on everything but health; off without it"
    )
    basic_auth_pass: SecretStr | None = Field(None, validate_default=True, description="Password for Basic auth")
    webhook_secret: SecretStr | None = Field(
        None,
        description=(
            "What the header `X-Webhook-Secret` of a webhook must hold; with Basic auth and without this, one is made "
            "and kept in `MODEL_DIR`"
        ),
    )
    rate_limit_per_minute: int = Field(
        60_000,
        gt=0,
        description="Most requests a minute from one address to one web process",
    )
    max_request_bytes: int = Field(64 * MIB, gt=0, description="Largest request")
    database_url: str | None = Field(None, description="SQLAlchemy URL of the state; SQLite in `MODEL_DIR` without it")
    artifacts_url: str | None = Field(
        None,
        description=(
            "Where versions are, if not in `MODEL_DIR`: another folder; or a URL such as `s3://bucket/prefix`, where "
            "features are kept as well"
        ),
    )
    artifact_cache_bytes: int = Field(
        4096 * MIB, gt=0, description="Room for copies of versions, where `ARTIFACTS_URL` is a URL"
    )
    backbone: str = Field("mobilenet_v3_large", description="Name of any torchvision classification model")
    weights: str = Field(
        "auto", description="`auto`: torchvision's own weights; `none`: untrained; or a file with a state dict"
    )
    image_views: int = Field(
        2, ge=1, le=2, description="2: an image's centre and the whole; 1: the centre only, embedded twice as fast"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the backbone runs")
    train_min_labels: int = Field(4, ge=2, description="Labels before the first version")
    train_quiet_s: float = Field(1.0, ge=0, description="Seconds without a new label before a training starts")
    train_max_wait_s: float = Field(
        10.0, ge=0, description="Longest wait of a label for a training, however busy the annotators"
    )
    finetune_min_labels: int = Field(
        200, ge=10, description="Labels before the network is fine-tuned; again at every half more"
    )
    push_predictions: bool = Field(
        True, description="Store suggestions for all unlabelled tasks in Label Studio after each promotion"
    )
    suggest_min_accuracy: float = Field(
        0.0, ge=0, le=1, description="Accuracy that a version must reach before annotators see its suggestions"
    )
    audit_share: float = Field(
        0.0, ge=0, le=1, description="Share of images, drawn by chance, whose suggestions annotators never see"
    )
    query_strategy: Literal[
        "tandem", "random", "least_confident", "margin", "entropy", "typicality", "coverage", "k_centre", "badge"
    ] = Field("tandem", description="How images are chosen to be labelled next")
    query_batch_size: int = Field(20, ge=1, le=200, description='Tasks in the view "Label next"')
    labelling_views: bool = Field(
        True,
        description='Keep the views "Label next" and "Check these labels", and switch Label Studio\'s sampling once',
    )
    sync_interval_s: float = Field(300.0, gt=0, description="Seconds between reconciliations with Label Studio")
    image_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Internal hosts, separated by commas, that images may come from besides Label Studio"
    )
    local_files_root: Path | None = Field(
        None, description="Folder with the same files as Label Studio's local storage, to read them without a download"
    )
    requests_ca_bundle: Path | None = Field(
        None,
        description=(
            "File with the certificates of the authorities that Label Studio's and images' TLS certificates may come "
            "from, in PEM; those of `certifi` without it"
        ),
    )
    image_timeout_s: float = Field(20.0, gt=0, description="Longest download of one image")
    max_image_bytes: int = Field(64 * MIB, gt=0, description="Largest image file")
    max_image_pixels: int = Field(
        100_000_000, gt=0, description="Largest image; also the most pixels that a process decodes at a time"
    )
    image_cache_bytes: int = Field(4096 * MIB, gt=0, description="Room for downloaded images")
    versions_kept: int = Field(
        20,
        ge=0,
        description=(
            "Retired and rejected versions of each project whose files are kept, beside the active one and all of the "
            "last day; features of networks that only older ones use go, too"
        ),
    )
    jobs_kept_days: float = Field(7.0, gt=0, description="Days for which jobs that ended are listed")
    predict_timeout_s: float = Field(
        60.0, gt=0, description="Time for one request for suggestions; what is not ready by then comes later"
    )
    log_format: Literal["json", "console"] | None = Field(
        None, description="`json` or `console`; without it lines are for people on a terminal, and JSON elsewhere"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level of log lines")

    @field_validator("image_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(host.strip().lower() for host in value.split(",") if host.strip())
        return value

    @field_validator("label_studio_url", "public_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        is_base = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        if not is_base or not _has_port_or_none(parts):
            raise ValueError(f"{value!r} is not a base URL: write it like http://label-studio.example:8080")
        if parts.username or parts.password:
            raise ValueError("a URL with a user or password in it would end up in logs: leave them out")
        return value.rstrip("/")

    @field_validator("model_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("label_studio_api_key")
    @classmethod
    def _check_it_is_for_something(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if value and others.data.get("label_studio_url", "wrong by itself") is None:
            raise ValueError("needs LABEL_STUDIO_URL: say where Label Studio is")
        return value

    @field_validator("basic_auth_pass")
    @classmethod
    def _check_user(cls, value: SecretStr | None, others: ValidationInfo) -> SecretStr | None:
        if bool(value) != bool(others.data["basic_auth_user"]):
            raise ValueError("goes together with BASIC_AUTH_USER: set both or neither")
        return value

    @field_validator("metrics_port")
    @classmethod
    def _check_it_is_another_port(cls, value: int | None, others: ValidationInfo) -> int | None:
        if value is not None and value == others.data.get("port"):
            raise ValueError(f"{value} is PORT, too: choose another one")
        return value

    @field_validator("requests_ca_bundle")
    @classmethod
    def _check_file(cls, value: Path | None) -> Path | None:
        if value and not value.is_file():
            raise ValueError(f"{str(value)!r} is not a file")
        return value

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, value: str) -> str:
        if value not in ("auto", "none") and not Path(value).is_file():
            raise ValueError(f"{value!r} is neither auto, none nor a file")
        return value

    @property
    def resolved_database_url(self) -> str:
        """The database URL in use."""
        return self.database_url or f"sqlite:///{self.model_dir / 'tandem.sqlite3'}"

    @property
    def resolved_artifacts_url(self) -> str:
        """The artifacts URL in use."""
        return self.artifacts_url or str(self.model_dir / "artifacts")

    @property
    def artifact_cache_folder(self) -> Path:
        """Where copies of artifacts from a storage are."""
        return self.model_dir / "artifact-cache"


def _has_port_or_none(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def load_settings(**overrides: object) -> Settings:
    """Read the environment and the files of secrets, with overrides for what a command line option gives.

    Raises:
        ConfigurationError: naming everything that is wrong at once.
    """
    try:
        return Settings(_secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None, **overrides)  # type: ignore[arg-type]  # pydantic checks each value
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            name = "_".join(str(part) for part in problem["loc"]).upper() or "settings"
            lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigurationError("these settings are wrong:\n  " + "\n  ".join(lines)) from None
