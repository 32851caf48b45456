"""A real Label Studio on this machine, for the demo and the tests: SQLite, loopback only, nothing goes out."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from backend.background_process import BackgroundProcess, ServerFailed, free_port
from backend.label_studio_installation import Report, base_environment, be_silent, install, migrated_database

HOST = "127.0.0.1"
USERNAME = "demo@example.com"
START_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """How to get in: kept with the data, because Label Studio stores no more than a hash of the password."""

    url: str
    username: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    personal_access_token: str | None = field(default=None, repr=False)


class LocalLabelStudio:
    """A Label Studio with its data in ``data_dir``; a context manager that starts it and stops it again.

    ``start`` on a folder used before brings back what it holds, and takes over a server that still runs there.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        cache_dir: Path,
        preferred_port: int | None = None,
        legacy_tokens: bool = True,
        private_addresses: bool = True,
        report: Report = be_silent,
    ) -> None:
        """Describe the server.

        Args:
            data_dir: database, media, login and log.
            cache_dir: keeps the installation and a migrated empty database, for all servers to come.
            preferred_port: taken when free; any free one otherwise.
            legacy_tokens: whether Label Studio accepts legacy tokens (its own default is not to); counts when
                ``data_dir`` is made.
            private_addresses: whether Label Studio calls backends and webhooks on this machine and its network (its
                own default is not to).
            report: told in a few words what is going on, at most some times a second.
        """
        self.data_dir = data_dir.absolute()
        self.cache_dir = cache_dir.absolute()
        self._preferred_port = preferred_port
        self._legacy_tokens = legacy_tokens
        self._private_addresses = private_addresses
        self._report = report
        self._process = BackgroundProcess(folder=self.data_dir, name="label-studio")
        self._login_file = self.data_dir / "login.json"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def login(self) -> Login:
        """Address and credentials; there once the server was started."""
        return Login(**json.loads(self._login_file.read_text()))

    @property
    def url(self) -> str:
        """Where the server is."""
        return self.login.url

    @property
    def username(self) -> str:
        """Who may log in."""
        return self.login.username

    @property
    def password(self) -> str:
        """The password, random for each data folder."""
        return self.login.password

    @property
    def token(self) -> str:
        """The legacy token; refused by the server when it was made without legacy tokens."""
        return self.login.token

    @property
    def log_file(self) -> Path:
        """Where the server logs to."""
        return self._process.log_file

    @property
    def is_running(self) -> bool:
        """Whether a server lives on this data folder, whoever started it."""
        return self._process.is_running

    def start(self) -> None:
        """Install, migrate and start as far as needed, and wait until the server is healthy.

        Raises:
            ServerFailed: with the end of the log.
        """
        if not self.is_running:
            program = install(self.cache_dir, self._report)
            self._prepare_data(program)
            port = free_port(HOST, self._preferred_port)
            self._write_login(port)
            self._process.start(self._command(program, port), self._environment())
        self._wait_until_healthy()

    def stop(self) -> bool:
        """Stop the server, whoever started it; return whether there was one."""
        return self._process.stop()

    def personal_access_token(self) -> str:
        """Return a personal access token of the user, made by logging in as a browser does.

        Raises:
            ServerFailed: when Label Studio refuses.
        """
        if self.login.personal_access_token is None:
            with requests.Session() as browser:
                browser.trust_env = False
                self._log_in(browser)
                answer = browser.post(
                    f"{self.url}/api/token/",
                    headers={"X-CSRFToken": browser.cookies["csrftoken"], "Referer": self.url},
                    timeout=REQUEST_TIMEOUT_S,
                )
                if answer.status_code != requests.codes.created:
                    raise ServerFailed(f"Label Studio gave no token: {answer.status_code} {answer.text[:200]}")
                self._store_login(replace(self.login, personal_access_token=answer.json()["token"]))
        token = self.login.personal_access_token
        if token is None:
            raise ServerFailed(f"the token is missing in {self._login_file}")
        return token

    def _log_in(self, browser: requests.Session) -> None:
        page = f"{self.url}/user/login/"
        browser.get(page, timeout=REQUEST_TIMEOUT_S).raise_for_status()
        form = {
            "email": self.username,
            "password": self.password,
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        answer = browser.post(page, data=form, headers={"Referer": page}, timeout=REQUEST_TIMEOUT_S)
        if "sessionid" not in browser.cookies:
            raise ServerFailed(f"Label Studio refused the login of {self.username}: {answer.status_code}")

    def _prepare_data(self, program: Path) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "local_files").mkdir(exist_ok=True)
        database = self.data_dir / "label_studio.sqlite3"
        if not database.exists():
            shutil.copyfile(migrated_database(program, self.cache_dir, self._report), database)

    def _write_login(self, port: int) -> None:
        url = f"http://{HOST}:{port}"
        if self._login_file.exists():
            self._store_login(replace(self.login, url=url))
            return
        self._store_login(
            Login(
                url=url,
                username=USERNAME,
                password=secrets.token_urlsafe(12),
                token=secrets.token_hex(20),
            )
        )

    def _store_login(self, login: Login) -> None:
        self._login_file.touch(mode=0o600)
        self._login_file.write_text(json.dumps(asdict(login), indent=2))

    def _command(self, program: Path, port: int) -> list[str]:
        return [
            *(str(program), "start", "--no-browser"),
            *("--internal-host", HOST, "--port", str(port), "--host", self.url),
        ]

    def _environment(self) -> dict[str, str]:
        return base_environment() | {
            "LABEL_STUDIO_BASE_DATA_DIR": str(self.data_dir),
            # In the environment, not on the command line, which everybody on the machine can read.
            "LABEL_STUDIO_USERNAME": self.username,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            # One that it makes itself is another after a restart where it happens to begin with a dollar sign.
            "SECRET_KEY": hashlib.sha256(self.password.encode()).hexdigest(),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": str(self._legacy_tokens).lower(),
            "LOCAL_FILES_SERVING_ENABLED": "true",
            "LOCAL_FILES_DOCUMENT_ROOT": str(self.data_dir / "local_files"),
            # Without both, Label Studio refuses a backend, or silently its webhook, on this machine.
            "ML_BLOCK_LOCAL_IP": str(not self._private_addresses).lower(),
            "SSRF_PROTECTION_ENABLED": str(not self._private_addresses).lower(),
        }

    def _wait_until_healthy(self) -> None:
        started_s = time.monotonic()
        with requests.Session() as session:
            session.trust_env = False
            while not _is_healthy(session, self.url):
                self._process.check_alive()
                elapsed_s = time.monotonic() - started_s
                if elapsed_s > START_TIMEOUT_S:
                    self.stop()
                    raise ServerFailed(f"not healthy after {START_TIMEOUT_S:.0f} s. {self._process.log_tail()}")
                self._report(f"Label Studio starts ({elapsed_s:.0f} s)")
                time.sleep(0.3)


def _is_healthy(session: requests.Session, url: str) -> bool:
    try:
        return session.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False
