"""Whether a Tandem answers at a URL."""

from __future__ import annotations

import requests

TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 2**16


class HttpHealth:
    """A ``HealthProbe`` over HTTP; proxies of the environment are ignored, redirects not followed."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file

    def problem(self, base_url: str) -> str:
        """Return why no Tandem answers at a URL, nothing when one does."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = self._ca_file or True
            try:
                with session.get(f"{base_url}/health", timeout=TIMEOUT_S, allow_redirects=False, stream=True) as answer:
                    content = answer.raw.read(MAX_ANSWER_BYTES, decode_content=True)
            except requests.exceptions.SSLError:
                return "its TLS certificate is not accepted"
            except requests.RequestException as error:
                return f"it cannot be reached ({type(error).__name__})"
        if answer.status_code != 200:
            return f"it answers with {answer.status_code}"
        return "" if b'"Tandem"' in content else "something else answers there"
