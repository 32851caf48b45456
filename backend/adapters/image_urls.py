"""What the URL of an image means: where it leads, whether Label Studio's key belongs there, what may be said of it."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import parse_qs, unquote, unquote_to_bytes

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from backend.errors import ImageForbidden, ImageTooLarge, ImageUnreadable

SHOWN_CHARACTERS = 160

_CLOUD_URI = re.compile(r"(s3|gs|azure-blob)://[^/]", re.IGNORECASE)
_LOCAL_FILES = "/data/local-files/"
_SERVED = re.compile(r"/(data/|storage-data/|(tasks|projects)/[0-9]+/(presign|resolve)/)")
"""Where Label Studio keeps images, and nothing but them: no other page is asked for with the key."""


def shorten(image_url: str) -> str:
    """Return as much of a URL as may stand in messages: no password, no signature, no image."""
    if not image_url:
        return "no URL"
    if is_data_uri(image_url):
        return f"{image_url[:SHOWN_CHARACTERS].partition(',')[0]},…"
    address, _, query = image_url.partition("?")
    if _LOCAL_FILES in f"{address}/" and query.startswith("d="):
        address = f"{address}?{query.partition('&')[0]}"
    address = re.sub(r"//[^/]*@", "//", address.partition("#")[0])
    shown = address if len(address) <= SHOWN_CHARACTERS else f"{address[:SHOWN_CHARACTERS]}…"
    return "".join(character if character.isprintable() else "�" for character in shown)


def parse_http_url(url: str) -> Url:
    """Return the parts of an http or https URL, normalised.

    Raises:
        ImageForbidden: it is none, or has parts that no image needs.
    """
    try:
        parts = parse_url(url)
    except LocationParseError:
        raise ImageForbidden("this is no URL that can be understood") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ImageForbidden(
            "images come as http, https, s3, gs, azure-blob and data URLs and as paths on Label Studio, nothing else"
        )
    if parts.auth is not None:
        raise ImageForbidden("a URL with a user or password in it is not opened: leave them out")
    if ".." in re.split(r"[/\\]", unquote(parts.path or "")):
        raise ImageForbidden("a path with '..' in it is not opened: write the path that is meant")
    return parts


def origin(parts: Url) -> tuple[str | None, str | None, int]:
    """Return scheme, host and port, which together say whom one talks to (RFC 6454)."""
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)


def is_data_uri(url: str) -> bool:
    """Tell whether a URL holds the image itself."""
    return url[:5].lower() == "data:"


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """Return the bytes that a data URI holds (RFC 2397).

    Raises:
        ImageTooLarge: more than ``max_bytes``.
        ImageUnreadable: it is malformed.
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ImageUnreadable("a data URI without a comma holds nothing")
    if len(payload) > 3 * max_bytes:  # each byte as %xx
        raise ImageTooLarge(f"the data URI holds more than the {max_bytes} bytes of MAX_IMAGE_BYTES")
    content = unquote_to_bytes(payload)
    if header.lower().endswith(";base64"):
        content = b"".join(content.split()).rstrip(b"=")
        try:
            content = base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
        except binascii.Error as error:
            raise ImageUnreadable(f"the data URI is not base64: {error}") from None
    return content


class LabelStudioUrls:
    """The URLs of one Label Studio, perhaps installed below a path of its host."""

    def __init__(self, base_url: str) -> None:
        self._base = parse_http_url(base_url.rstrip("/"))
        self._base_path = (self._base.path or "").rstrip("/")

    @property
    def host(self) -> str:
        """Label Studio's ``host:port``."""
        _, host, port = origin(self._base)
        return f"{host}:{port}"

    def owns(self, parts: Url) -> bool:
        """Tell whether a URL leads to Label Studio: scheme, host and port have to be the same."""
        return origin(parts) == origin(self._base)

    def serves(self, parts: Url) -> bool:
        """Tell whether a URL leads to where Label Studio keeps images."""
        path = parts.path or ""
        below = path.startswith(self._base_path + "/")
        return self.owns(parts) and below and _SERVED.match(path[len(self._base_path) :]) is not None

    def is_upload(self, parts: Url) -> bool:
        """Tell whether a URL leads to a file that was uploaded to Label Studio."""
        return self.owns(parts) and (parts.path or "").startswith(f"{self._base_path}/data/upload/")

    def local_file(self, parts: Url) -> str | None:
        """Return the path, below its document root, of a file in one of Label Studio's local storages."""
        if not self.owns(parts) or parts.path != self._base_path + _LOCAL_FILES:
            return None
        return parse_qs(parts.query or "").get("d", [None])[0]

    def absolute(self, path: str) -> str:
        """Return the URL of a path, with or without the path that Label Studio is installed below."""
        below = path if path.startswith(f"{self._base_path}/") else self._base_path + path
        return Url(scheme=self._base.scheme, host=self._base.host, port=self._base.port).url + below

    def presigned(self, cloud_uri: str, label_studio_task_id: int) -> str:
        """Return the URL where Label Studio gives access to a file in a project's cloud storage."""
        encoded = base64.urlsafe_b64encode(cloud_uri.encode()).decode()
        return self.absolute(f"/tasks/{label_studio_task_id}/presign/?fileuri={encoded}")


def locate(image_url: str, label_studio_task_id: int, label_studio: LabelStudioUrls | None) -> str:
    """Return the http or https URL that an image URL of a task stands for.

    Raises:
        ImageForbidden: it leads to Label Studio, and nobody said where that is.
    """
    is_path = image_url.startswith("/") and not image_url.startswith("//")
    if not is_path and not _CLOUD_URI.match(image_url):
        return image_url
    if label_studio is None:
        raise ImageForbidden("only Label Studio can give this image: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    return label_studio.absolute(image_url) if is_path else label_studio.presigned(image_url, label_studio_task_id)
