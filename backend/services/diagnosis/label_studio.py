"""Checks of both directions between Tandem and Label Studio, whatever the project."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from backend.errors import LabelStudioError, LabelStudioUnauthorized
from backend.ports import Clock, HealthProbe, LabelStudioInspector, LabelStudioServer, UrlVerdict
from backend.services.diagnosis.findings import Check, Finding, Installation, failed, ok, skipped, warning

WRITTEN_FOR = "1.23"
TOLERATED_SKEW_S = 60.0

GUARDED = (
    "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false and USER_ADDITIONAL_BANNED_SUBNETS naming what stays "
    "forbidden (see docker-compose.yml), or with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false"
)
DOTTED = (
    "give Tandem a host name with a dot (a network alias such as tandem.internal), in PUBLIC_URL and in the project"
)
RESOLVABLE = "give PUBLIC_URL a host name that Label Studio's machine can resolve"
REMEDIES = {UrlVerdict.BLOCKED: GUARDED, UrlVerdict.MALFORMED: DOTTED, UrlVerdict.UNRESOLVED: RESOLVABLE}
REASONS = {
    UrlVerdict.BLOCKED: "Label Studio refuses it: it leads to a private or local address",
    UrlVerdict.MALFORMED: "Label Studio does not take it for a URL, and then makes no webhook without saying so",
    UrlVerdict.UNRESOLVED: "Label Studio cannot resolve its host name",
}


class LabelStudioChecks:
    """Asks Label Studio about itself and about our URL; changes nothing."""

    def __init__(
        self, installation: Installation, inspector: LabelStudioInspector | None, health: HealthProbe, clock: Clock
    ) -> None:
        self._installation = installation
        self._inspector = inspector
        self._health = health
        self._clock = clock

    def run(self) -> Iterator[Finding]:
        """Make each check."""
        yield self._label_studio_url()
        yield from self._label_studio()
        yield self._public_url()

    def judge_our_url(self, label_studio_project: int) -> Iterator[Finding]:
        """Check whether Label Studio would take our URL for a backend and for a webhook of one of its projects."""
        url = self._installation.public_url
        if self._inspector is None or url is None:
            return
        for check, judge, address in (
            (Check.BACKEND_ADDRESS, self._inspector.judge_backend_url, url),
            (Check.WEBHOOK_ADDRESS, self._inspector.judge_webhook_url, f"{url}/webhook"),
        ):
            try:
                verdict = judge(label_studio_project, address)
            except LabelStudioError as error:
                yield skipped(check, f"Label Studio cannot be asked: {error}")
                continue
            if verdict is UrlVerdict.ACCEPTED:
                yield ok(check, f"Label Studio accepts {address}")
            else:
                yield failed(check, f"{address}: {REASONS[verdict]}", REMEDIES[verdict])

    def _label_studio_url(self) -> Finding:
        url = self._installation.label_studio_url
        if url is None:
            remedy = "set LABEL_STUDIO_URL to where Label Studio is, as this machine reaches it"
            return failed(Check.LABEL_STUDIO_URL, "LABEL_STUDIO_URL is not set", remedy)
        return ok(Check.LABEL_STUDIO_URL, url)

    def _label_studio(self) -> Iterator[Finding]:
        if self._inspector is None:
            reason = "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not both set"
            if self._installation.label_studio_url and not self._installation.has_api_key:
                remedy = "set LABEL_STUDIO_API_KEY: Account & Settings > Personal Access Token in Label Studio"
                yield failed(Check.API_KEY, "LABEL_STUDIO_API_KEY is not set", remedy)
            else:
                yield skipped(Check.API_KEY, reason)
            yield skipped(Check.LABEL_STUDIO, reason)
            return
        try:
            server = self._inspector.server()
        except LabelStudioError as error:
            yield failed(Check.LABEL_STUDIO, str(error), self._way_to_label_studio())
            yield skipped(Check.API_KEY, "Label Studio does not answer")
            return
        yield ok(Check.LABEL_STUDIO, f"answers at {self._installation.label_studio_url}")
        yield self._versions(server)
        yield self._skew(server)
        yield self._api_key(self._inspector)

    def _way_to_label_studio(self) -> str:
        if self._installation.in_container and is_loopback(self._installation.label_studio_url or ""):
            return (
                "in a container localhost is the container itself: set LABEL_STUDIO_URL to Label Studio's service "
                "name, or to host.docker.internal"
            )
        return "correct LABEL_STUDIO_URL, start Label Studio, open the way between the two"

    def _versions(self, server: LabelStudioServer) -> Finding:
        found = f"Tandem {self._installation.tandem_version}, Label Studio {server.version}"
        if not f"{server.version}.".startswith(f"{WRITTEN_FOR}."):
            remedy = f"use Label Studio {WRITTEN_FOR}, or expect that one or the other thing does not work"
            return warning(Check.VERSIONS, f"{found}; Tandem is written for {WRITTEN_FOR}", remedy)
        return ok(Check.VERSIONS, found)

    def _skew(self, server: LabelStudioServer) -> Finding:
        if server.time is None:
            return skipped(Check.CLOCK, "Label Studio does not tell the time")
        skew_s = (self._clock.now() - server.time).total_seconds()
        if abs(skew_s) > TOLERATED_SKEW_S:
            found = (
                f"this machine's clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} Label Studio's"
            )
            return warning(Check.CLOCK, found, "synchronize the clocks (NTP) of both machines")
        return ok(Check.CLOCK, f"within {TOLERATED_SKEW_S:.0f} s of Label Studio's")

    def _api_key(self, inspector: LabelStudioInspector) -> Finding:
        try:
            account = inspector.account()
        except LabelStudioUnauthorized as error:
            found, _, remedy = str(error).partition(". ")
            return failed(Check.API_KEY, found, remedy or "make a new personal access token in Label Studio")
        except LabelStudioError as error:
            return failed(Check.API_KEY, str(error), "look at Label Studio's log")
        return ok(Check.API_KEY, f"the {inspector.key_kind} of {account} is accepted")

    def _public_url(self) -> Finding:
        url = self._installation.public_url
        remedy = "set PUBLIC_URL to how Label Studio reaches Tandem, the same as in the project's Settings > Model"
        if url is None:
            return failed(
                Check.PUBLIC_URL, "PUBLIC_URL is not set: the webhook can be neither found nor repaired", remedy
            )
        host = urlsplit(url).hostname or ""
        if is_loopback(url):
            if not is_loopback(self._installation.label_studio_url or url):
                return failed(Check.PUBLIC_URL, f"{url}: to Label Studio that is its own machine or container", remedy)
        elif "." not in host and ":" not in host:
            return failed(Check.PUBLIC_URL, f"{host} has no dot: {REASONS[UrlVerdict.MALFORMED]}", DOTTED)
        problem = self._health.problem(url)
        if problem:
            found = f"no Tandem answers at {url} from here: {problem}"
            return warning(Check.PUBLIC_URL, found, "start Tandem; else try the URL from Label Studio's machine")
        return ok(Check.PUBLIC_URL, f"Tandem answers at {url}")


def is_loopback(url: str) -> bool:
    """Tell whether a URL leads to the machine that opens it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
