"""Every error Tandem raises on purpose.

TandemError
├── ConfigurationError            a setting is missing, malformed or contradicts another
├── InvalidRequest                a caller sent something that cannot be understood
├── Unauthorized                  the credentials are missing or wrong
├── CrossSiteRequest              a page of another site made a browser send the request
├── RateLimited                   a client sent too many requests of a kind
├── NotFound                      a project, version or job that does not exist
├── Conflict                      the request is understood but not possible in the present state
├── UnsupportedLabelConfig        a label config without a part that Tandem can learn
├── LabelStudioError
│   ├── LabelStudioUnavailable    no answer, a timeout or a 5xx: worth another try
│   ├── LabelStudioUnauthorized   the API key is missing, wrong, expired or of a kind that is switched off
│   └── LabelStudioRejected       any other refusal: the same request will be refused again
├── ImageError
│   ├── ImageNotFound             the source says there is no such image
│   ├── ImageForbidden            an address, host, path or scheme that images may not come from
│   ├── ImageTooLarge             more bytes or pixels than allowed
│   ├── ImageUnreadable           bytes that are not an image Tandem can decode
│   └── ImageUnavailable          no answer in time: worth another try
├── StoreUnavailable              database or storage is locked, full or out of reach: worth another try
├── EmbedderUnavailable           the embedding process is not up (yet): worth another try
├── Overloaded                    more requests at a time than are taken on: worth another try
├── CheckpointCorrupt             a stored version that is incomplete or was altered
├── TrainingImpossible            too few labels or classes; not a failure
├── JobCancelled                  somebody cancelled the running job
├── JobFailed                     a job's child process ended without success
├── JobInterrupted                what a job needs is out of reach for now: worth another try
│   └── JobProcessDied            its child process was killed: worth a few more tries
└── JobLost                       the lease of the running job went to another worker
"""


class TandemError(Exception):
    """Root of all errors raised on purpose; the message says what happened, the value, and what to do."""


class ConfigurationError(TandemError):
    """A setting is missing, malformed or contradicts another."""


class InvalidRequest(TandemError):
    """A caller sent something that cannot be understood; ``field`` names the offending part where there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Unauthorized(TandemError):
    """The credentials are missing or wrong."""


class CrossSiteRequest(TandemError):
    """A page of another site made a browser send the request."""


class RateLimited(TandemError):
    """A client sent too many requests of a kind; ``retry_after_s`` says when to come again."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotFound(TandemError):
    """A project, version or job that does not exist."""


class Conflict(TandemError):
    """The request is understood but not possible in the present state."""


class UnsupportedLabelConfig(TandemError):
    """A label config without a part that Tandem can learn."""


class LabelStudioError(TandemError):
    """A call to Label Studio's API did not succeed."""


class LabelStudioUnavailable(LabelStudioError):
    """No answer, a timeout or a 5xx: worth another try."""


class LabelStudioUnauthorized(LabelStudioError):
    """The API key is missing, wrong, expired or of a kind that is switched off."""


class LabelStudioRejected(LabelStudioError):
    """Any other refusal; ``status`` is the HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ImageError(TandemError):
    """An image could not be brought in."""


class ImageNotFound(ImageError):
    """The source says there is no such image."""


class ImageForbidden(ImageError):
    """An address, host, path or scheme that images may not come from."""


class ImageTooLarge(ImageError):
    """More bytes or pixels than allowed."""


class ImageUnreadable(ImageError):
    """Bytes that are not an image Tandem can decode."""


class ImageUnavailable(ImageError):
    """No answer in time: worth another try."""


class StoreUnavailable(TandemError):
    """Database or storage is locked, full or out of reach: worth another try."""


class EmbedderUnavailable(TandemError):
    """The embedding process is not up (yet): worth another try."""


class Overloaded(TandemError):
    """More requests at a time than are taken on: worth another try."""


class CheckpointCorrupt(TandemError):
    """A stored version that is incomplete or was altered."""


class TrainingImpossible(TandemError):
    """Too few labels or classes; not a failure."""


class JobCancelled(TandemError):
    """Somebody cancelled the running job."""


class JobFailed(TandemError):
    """A job's child process ended without success."""


class JobInterrupted(TandemError):
    """What a job needs is out of reach for now: worth another try."""


class JobProcessDied(JobInterrupted):
    """A job's child process was killed: worth a few more tries."""


class JobLost(TandemError):
    """The lease of the running job went to another worker."""


PASSING_ERRORS = (
    EmbedderUnavailable,
    ImageUnavailable,
    JobInterrupted,
    LabelStudioUnavailable,
    StoreUnavailable,
    OSError,
)
"""What may be gone when a job is tried again; of the system's errors that is a full disk above all."""
