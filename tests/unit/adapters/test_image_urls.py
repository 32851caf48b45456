"""What image URLs mean: where they lead, who gets the key, what messages show."""

from __future__ import annotations

import base64

import pytest

from backend.adapters.image_urls import LabelStudioUrls, decode_data_uri, locate, parse_http_url, shorten
from backend.errors import ImageForbidden, ImageTooLarge, ImageUnreadable

AT_ROOT = LabelStudioUrls("http://label-studio:8080")
BELOW_A_PATH = LabelStudioUrls("https://example.org/label-studio/")


@pytest.mark.parametrize(
    ("label_studio", "image_url", "url"),
    [
        (AT_ROOT, "/data/upload/5/ab-cat.jpg", "http://label-studio:8080/data/upload/5/ab-cat.jpg"),
        (AT_ROOT, "/data/local-files/?d=a%20b/c.png", "http://label-studio:8080/data/local-files/?d=a%20b/c.png"),
        (BELOW_A_PATH, "/data/upload/5/cat.jpg", "https://example.org/label-studio/data/upload/5/cat.jpg"),
        (BELOW_A_PATH, "/label-studio/data/upload/5/c.jpg", "https://example.org/label-studio/data/upload/5/c.jpg"),
        (BELOW_A_PATH, "/label-studio2/c.jpg", "https://example.org/label-studio/label-studio2/c.jpg"),
        (AT_ROOT, "http://images.example/a.jpg?x=1", "http://images.example/a.jpg?x=1"),
        (None, "https://images.example/a.jpg", "https://images.example/a.jpg"),
    ],
)
def test_where_an_image_url_leads(label_studio, image_url, url):
    assert locate(image_url, 7, label_studio) == url


@pytest.mark.parametrize("uri", ["s3://bucket/ä?.jpg", "gs://bucket/a.jpg", "azure-blob://container/a/b.jpg"])
def test_cloud_uris_lead_to_label_studio(uri):
    url = locate(uri, 7, BELOW_A_PATH)
    start, encoded = url.split("?fileuri=")
    assert start == "https://example.org/label-studio/tasks/7/presign/"
    assert base64.urlsafe_b64decode(encoded).decode() == uri


@pytest.mark.parametrize("image_url", ["/data/upload/5/cat.jpg", "s3://bucket/cat.jpg"])
def test_without_label_studio_its_images_are_refused(image_url):
    with pytest.raises(ImageForbidden, match="set LABEL_STUDIO_URL"):
        locate(image_url, 7, None)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "cat.jpg",
        "file:///etc/passwd",
        "ftp://example.org/a.jpg",
        "gopher://example.org/",
        "//example.org/a.jpg",
        "javascript:alert(1)",
        "http://",
        "http:///etc/passwd",
        "http://example.org:99999999/",
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://public.example@127.0.0.1/",
        "http://example.org/data/%2e%2e/api/",
        "http://example.org/data/%2E./api/",
        "http://example.org/data/..%5capi",
    ],
)
def test_what_is_not_opened(url):
    with pytest.raises(ImageForbidden):
        parse_http_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://label-studio:8080/data/upload/5/cat.jpg",
        "HTTP://Label-Studio:8080/data/local-files/?d=x",
        "http://label-studio:8080/storage-data/uploaded/?filepath=x",
        "http://label-studio:8080/tasks/5/presign/?fileuri=x",
        "http://label-studio:8080/projects/5/resolve/?fileuri=x",
    ],
)
def test_label_studio_serves_its_own_images(url):
    assert AT_ROOT.serves(parse_http_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "https://label-studio:8080/data/upload/5/cat.jpg",
        "http://label-studio/data/upload/5/cat.jpg",
        "http://label-studio:8081/data/upload/5/cat.jpg",
        "http://label-studio.example:8080/data/upload/5/cat.jpg",
        "http://images.example/data/upload/5/cat.jpg",
        "http://label-studio:8080/api/users",
        "http://label-studio:8080/data/../api/users",
        "http://label-studio:8080/database",
        "http://label-studio:8080/tasks/5/delete/",
        "http://label-studio:8080\\@images.example/data/upload/5/cat.jpg",
    ],
)
def test_nobody_else_serves_label_studios_images(url):
    assert not AT_ROOT.serves(parse_http_url(url))


def test_a_neighbour_on_the_same_host_is_not_label_studio():
    assert BELOW_A_PATH.serves(parse_http_url("https://example.org:443/label-studio/data/upload/5/cat.jpg"))
    assert not BELOW_A_PATH.serves(parse_http_url("https://example.org/data/upload/5/cat.jpg"))
    assert not BELOW_A_PATH.serves(parse_http_url("https://example.org/label-studio2/data/upload/5/cat.jpg"))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://label-studio:8080/data/local-files/?d=a%20b/c.png", "a b/c.png"),
        ("http://label-studio:8080/data/local-files/", None),
        ("http://images.example/data/local-files/?d=a", None),
        ("http://label-studio:8080/data/upload/?d=a", None),
    ],
)
def test_local_files(url, path):
    assert AT_ROOT.local_file(parse_http_url(url)) == path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://store.example/a.jpg?X-Amz-Signature=secret#x", "https://store.example/a.jpg"),
        ("https://user:secret@store.example/a.jpg", "https://store.example/a.jpg"),
        ("/data/local-files/?d=pets/1.png&token=secret", "/data/local-files/?d=pets/1.png"),
        ("data:image/png;base64,secret", "data:image/png;base64,…"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("", "no URL"),
        ("http://x/\n\x1b[31m", "http://x/��[31m"),
    ],
)
def test_messages_show_no_secrets(url, shown):
    assert shorten(url) == shown
    assert len(shorten(url * 100)) < 200


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("data:image/png;base64,AQID", b"\x01\x02\x03"),
        ("DATA:image/png;charset=x;BASE64,AQIDBA==", b"\x01\x02\x03\x04"),
        ("data:image/png;base64,AQIDBA", b"\x01\x02\x03\x04"),
        ("data:image/png;base64,AQ ID\n", b"\x01\x02\x03"),
        ("data:image/png;base64,%2B%2F8%3D", b"\xfb\xff"),
        ("data:,a%20b%ff", b"a b\xff"),
        ("data:image/png;base64,", b""),
    ],
)
def test_data_uris(uri, content):
    assert decode_data_uri(uri, 1000) == content


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:;base64,A", "data:;base64,AQI!D", "data:;base64,é"])
def test_malformed_data_uris(uri):
    with pytest.raises(ImageUnreadable):
        decode_data_uri(uri, 1000)


def test_a_data_uri_far_too_large_is_not_decoded():
    with pytest.raises(ImageTooLarge):
        decode_data_uri("data:;base64," + "A" * 3001, 1000)
