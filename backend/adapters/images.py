"""Images brought in from Label Studio, the web, cloud storages and the URLs themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urljoin

import structlog
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, NameResolutionError, SSLError
from urllib3.util import Timeout, Url

from backend.adapters.addresses import (
    CONNECT_TIMEOUT_S,
    AddressGuard,
    Deadline,
    Resolve,
    guarded_connections,
    resolve_host,
)
from backend.adapters.image_cache import ImageCache
from backend.adapters.image_urls import (
    LabelStudioUrls,
    decode_data_uri,
    is_data_uri,
    locate,
    origin,
    parse_http_url,
    shorten,
)
from backend.adapters.local_files import open_below
from backend.adapters.single_flight import SingleFlight
from backend.errors import (
    ImageError,
    ImageForbidden,
    ImageNotFound,
    ImageTooLarge,
    ImageUnavailable,
    ImageUnreadable,
    LabelStudioError,
    LabelStudioUnavailable,
)
from backend.ports import CachedImage

log = structlog.get_logger()

MAX_REDIRECTS = 5
READ_TIMEOUT_S = 10.0
RETRY_DELAYS_S = (0.2, 0.8)
CHUNK_BYTES = 2**16
MAGIC_BYTES = 12
SERVER_BUSY = (408, 425, 429)


class ImageFetcher:
    """An ``ImageSource`` for URLs that nobody has vouched for; safe for threads.

    Label Studio's key goes to Label Studio's own origin only, and only as long as no redirect has led elsewhere.
    Every other host must have a public address or be among ``image_hosts``.

    Args:
        cache: where the images end up.
        label_studio_url: where Label Studio is, if it is known.
        authorization: returns the header that logs in to Label Studio.
        image_hosts: internal hosts, as ``host`` or ``host:port``, that images may come from.
        local_files_root: Label Studio's document root for local files, where this machine has it, too.
        max_image_bytes: the largest image.
        resolve: how host names become addresses.
        ca_file: certificates of the authorities to trust, in PEM; those of ``certifi`` without it.
    """

    def __init__(
        self,
        cache: ImageCache,
        *,
        label_studio_url: str | None,
        authorization: Callable[[], dict[str, str]] | None,
        image_hosts: tuple[str, ...] = (),
        local_files_root: Path | None = None,
        max_image_bytes: int = 64 * 2**20,
        resolve: Resolve = resolve_host,
        ca_file: str | None = None,
    ) -> None:
        self._cache = cache
        self._label_studio = LabelStudioUrls(label_studio_url) if label_studio_url else None
        self._authorization = authorization
        self._local_files_root = local_files_root
        self._max_image_bytes = max_image_bytes
        own_host = (self._label_studio.host,) if self._label_studio else ()
        self._connections = guarded_connections(AddressGuard((*image_hosts, *own_host), resolve), ca_file)
        self._downloads: SingleFlight[CachedImage] = SingleFlight()

    def fetch(self, image_url: str, *, label_studio_task_id: int, timeout_s: float) -> CachedImage:
        """Return the image behind the URL as it is now.

        Raises:
            ImageError: one of its kinds, with the reason.
        """
        image_url = image_url.strip()
        try:
            if is_data_uri(image_url):
                return self._store([decode_data_uri(image_url, self._max_image_bytes)])
            url = locate(image_url, label_studio_task_id, self._label_studio)
            return self._downloads.do(url, lambda: self._bring(url, timeout_s), timeout_s)
        except TimeoutError:
            raise ImageUnavailable(f"{shorten(image_url)}: not there after {timeout_s:g} s") from None
        except ImageError as error:
            raise type(error)(f"{shorten(image_url)}: {error}") from None

    def cached(self, digest: str) -> CachedImage | None:
        """Return an image from the local cache, or ``None`` when it is not there (any more)."""
        return self._cache.get(digest)

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._connections.clear()

    def _bring(self, url: str, timeout_s: float) -> CachedImage:
        local_path = self._label_studio.local_file(parse_http_url(url)) if self._label_studio else None
        file = open_below(self._local_files_root, local_path) if self._local_files_root and local_path else None
        if file is not None:
            with file:
                return self._store(iter(lambda: file.read(CHUNK_BYTES), b""))
        try:
            return self._try_download(url, timeout_s)
        except ImageError as error:
            if self._local_files_root and local_path:
                raise type(error)(f"{error}; nor is it in LOCAL_FILES_ROOT={str(self._local_files_root)!r}") from None
            raise

    def _try_download(self, url: str, timeout_s: float) -> CachedImage:
        with Deadline(timeout_s) as deadline:
            for delay_s in RETRY_DELAYS_S:
                try:
                    return self._download(url, deadline)
                except ImageUnavailable as error:
                    if deadline.remaining_s <= delay_s:
                        raise
                    log.info("image download failed, trying again", url=shorten(url), problem=str(error))
                    time.sleep(delay_s)
            return self._download(url, deadline)

    def _download(self, url: str, deadline: Deadline) -> CachedImage:
        with self._open(url, deadline) as chunks:
            return self._store(chunks)

    @contextmanager
    def _open(self, url: str, deadline: Deadline) -> Iterator[Iterable[bytes]]:
        """Open what a URL leads to, through redirects, each of which is checked like the URL itself."""
        with_key = True
        for _ in range(MAX_REDIRECTS + 1):
            parts = parse_http_url(url)
            with_key = with_key and self._label_studio is not None and self._label_studio.serves(parts)
            with closing(self._request(parts, deadline, with_key=with_key)) as response:
                location = response.get_redirect_location()
                if not location:
                    self._check_status(response.status, parts, with_key=with_key)
                    yield self._read(response, deadline)
                    return
            try:
                url = urljoin(parts.url, location)
            except ValueError:
                raise ImageForbidden("it is redirected to something that is no URL") from None
            if is_data_uri(url) and with_key:  # what Label Studio makes of some cloud storages
                yield [decode_data_uri(url, self._max_image_bytes)]
                return
        raise ImageForbidden(f"more than {MAX_REDIRECTS} redirects are not followed")

    def _request(self, parts: Url, deadline: Deadline, *, with_key: bool) -> BaseHTTPResponse:
        # A compressed answer could be far larger than what is counted.
        headers = {"User-Agent": "tandem", "Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
        if with_key and self._authorization:
            try:
                headers |= self._authorization()
            except LabelStudioUnavailable as error:
                raise ImageUnavailable(str(error)) from None
            except LabelStudioError as error:
                raise ImageForbidden(str(error)) from None
        scheme, host, port = origin(parts)
        connections = self._connections.connection_from_host(host, port, scheme)
        try:
            return connections.urlopen(
                "GET",
                parts.request_uri,
                headers=headers,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
                timeout=Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            )
        except HTTPError as error:
            raise _unavailable(error, deadline, str(host)) from None

    def _read(self, response: BaseHTTPResponse, deadline: Deadline) -> Iterator[bytes]:
        declared = response.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_image_bytes:
            raise self._too_large()
        try:
            yield from response.stream(CHUNK_BYTES, decode_content=False)
        except HTTPError as error:
            raise _unavailable(error, deadline, "the server") from None
        except ValueError:  # what urllib3 makes of a chunk of less than no bytes
            raise ImageUnavailable("what the server sent is no HTTP") from None
        if not deadline.remaining_s:
            # An answer of unknown length that the deadline cut off looks as if it were complete.
            raise ImageUnavailable("it was not complete in time")

    def _check_status(self, status: int, parts: Url, *, with_key: bool) -> None:
        """Raise what an answer other than success means."""
        from_label_studio = self._label_studio is not None and self._label_studio.owns(parts)
        who = "Label Studio" if from_label_studio else str(parts.host)
        if 200 <= status < 300:
            return
        if status in (401, 403):
            raise ImageForbidden(f"{who} answered {status}: {self._explain_refusal(with_key, from_label_studio)}")
        if status == 500 and self._label_studio and self._label_studio.is_upload(parts):
            raise ImageNotFound("Label Studio answered 500, as it does when the file of an upload is gone")
        if status >= 500 or status in SERVER_BUSY:
            raise ImageUnavailable(f"{who} answered {status}")
        if with_key and "/presign/" in (parts.path or ""):
            raise ImageNotFound(
                f"{who} answered {status}: the project needs a cloud storage that holds it (Settings > Cloud Storage)"
            )
        raise ImageNotFound(f"{who} answered {status}")

    def _explain_refusal(self, with_key: bool, from_label_studio: bool) -> str:
        if with_key and self._authorization:
            return "check that LABEL_STUDIO_API_KEY is valid and that its user may see the project"
        if from_label_studio and not self._authorization:
            return "set LABEL_STUDIO_API_KEY to a key of a user who may see the project"
        return "it wants a login that Tandem does not have, or a signed URL has expired"

    def _store(self, chunks: Iterable[bytes]) -> CachedImage:
        return self._cache.store(self._checked(chunks))

    def _checked(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass the chunks on while they are not too many and may be an image."""
        n_bytes = 0
        beginning: bytes = b""
        for chunk in chunks:
            n_bytes += len(chunk)
            if n_bytes > self._max_image_bytes:
                raise self._too_large()
            if len(beginning) < MAGIC_BYTES:
                beginning += chunk
                if len(beginning) < MAGIC_BYTES:
                    continue
                _check_magic(beginning)
                chunk = beginning
            yield chunk
        if n_bytes < MAGIC_BYTES:
            raise ImageUnreadable(f"{n_bytes} bytes are no image")

    def _too_large(self) -> ImageTooLarge:
        return ImageTooLarge(f"it has more than the {self._max_image_bytes} bytes of MAX_IMAGE_BYTES")


def _check_magic(beginning: bytes) -> None:
    known = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    is_webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    if not (is_webp or beginning.startswith(known)):
        raise ImageUnreadable(
            "what came is neither JPEG, PNG, WebP, GIF, BMP nor TIFF: is it a web page, or compressed?"
        )


def _unavailable(error: HTTPError, deadline: Deadline, host: str) -> ImageUnavailable:
    """Return what went wrong, without what was sent or received."""
    if not deadline.remaining_s:
        return ImageUnavailable(f"{host} did not deliver it in time")
    if isinstance(error, NameResolutionError):
        return ImageUnavailable(f"the host name {host} has no address")
    if isinstance(error, SSLError):
        return ImageUnavailable(
            f"the TLS certificate of {host} is not accepted: name a file with its authority's certificate in "
            "REQUESTS_CA_BUNDLE"
        )
    return ImageUnavailable(f"{host} cannot be reached or broke off ({type(error).__name__})")
