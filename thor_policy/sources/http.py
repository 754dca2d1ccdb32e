"""A source that is a JSON endpoint.

Owns the connection, the bearer key, and the answers that still count. Invariant: a request goes to the hosts
that pack and operator allow, whatever the id or a redirect says; TLS is verified; at most `max_bytes` of an
answer are read, and only JSON counts. An error names neither the id nor the key. Threads of its workers.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import cache
from urllib.parse import quote, urljoin, urlsplit

import httpx

from thor_policy.core import strict_json
from thor_policy.core.requests import Json
from thor_policy.policy.source_specs import Http, SourceSpec
from thor_policy.sources.source import Found, SourceError, at_time, found_in, listed

#: Redirects that are followed for one answer.
_MOST_REDIRECTS = 3
#: Answers that are kept, and their size in bytes of JSON.
MAX_CACHED, MAX_CACHED_BYTES = 4_096, 8 << 20
#: Parts of a path that a server resolves, so that they would leave the template's path.
_DOTS = (".", "..")


@cache
def _trust() -> ssl.SSLContext:
    """The certificates that the system trusts; loading them takes 20 ms."""
    return ssl.create_default_context()


class HttpSource:
    """The endpoint of `spec`. `hosts`, if any, are those that the operator allows; `key` is the bearer key.

    `clock_ns` is monotonic, for the time that an answer counts.
    """

    #: Each look-up asks anew, so nothing can be wrong in between.
    problem: str | None = None

    def __init__(
        self,
        spec: SourceSpec,
        http: Http,
        *,
        hosts: Collection[str] = (),
        key: str = "",
        verify: ssl.SSLContext | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._spec, self._http, self._clock_ns = spec, http, clock_ns
        origin = urlsplit(http.url)
        self._origin = (origin.hostname or "").lower()
        self._secure = origin.scheme == "https"
        self._operator = tuple(host.lower() for host in hosts)
        self._hosts = {self._origin, *(host.lower() for host in http.hosts)}
        self._key = key
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "thor-policy"}
        self._client = httpx.Client(
            headers=headers,
            verify=verify or (_trust() if self._secure else False),
            trust_env=False,
            follow_redirects=False,
            # one for each thread: the pool closes idle ones beyond that while another thread takes them
            limits=httpx.Limits(max_keepalive_connections=16),
        )
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str], tuple[int, int, Found | None]] = OrderedDict()
        self._kept_bytes = 0

    def look_up(self, type: str, id: str, deadline_ns: int) -> Found | None:
        key, kept = (type, id), self._cached((type, id))
        if kept is not None:
            return kept[0]
        answer = self._get(_filled(self._http.url, type, id), deadline_ns)
        result = None
        if answer is not None:
            if not isinstance(answer, dict):
                raise SourceError("the answer is no JSON object")
            result = found_in(self._spec, answer, fresh_at=at_time(time.time()))
        if self._http.ttl_s:
            self._keep(key, result)
        return result

    def listing(self, type: str, deadline_ns: int) -> list[str]:
        if self._http.listing is None:
            raise SourceError("the source cannot list its entities; add http.listing to pack.yaml")
        answer = self._get(_filled(self._http.listing, type, ""), deadline_ns)
        if not isinstance(answer, list):
            raise SourceError("the listing is no JSON list")
        return listed(answer)

    def close(self) -> None:
        self._client.close()

    # ------------------------------------------------------------ the cache

    def _cached(self, key: tuple[str, str]) -> tuple[Found | None] | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            until_ns, size, result = kept
            if self._clock_ns() >= until_ns:
                del self._kept[key]
                self._kept_bytes -= size
                return None
            self._kept.move_to_end(key)
        return (None if result is None else Found(**_fields(result), cached=True),)

    def _keep(self, key: tuple[str, str], result: Found | None) -> None:
        size = sum(map(len, key)) + len(strict_json.encode(result.values if result else {}))
        until_ns = self._clock_ns() + int(self._http.ttl_s * 1e9)
        with self._lock:
            if key in self._kept:
                self._kept_bytes -= self._kept.pop(key)[1]
            self._kept[key] = until_ns, size, result
            self._kept_bytes += size
            while len(self._kept) > MAX_CACHED or self._kept_bytes > MAX_CACHED_BYTES:
                self._kept_bytes -= self._kept.popitem(last=False)[1][1]

    # ------------------------------------------------------------ the request

    def _get(self, url: str, deadline_ns: int) -> Json:
        """The JSON of an answer; None for 404. Raises SourceError."""
        for _ in range(_MOST_REDIRECTS + 1):
            self._check_host(url)
            answer = self._send(url, deadline_ns)
            if isinstance(answer, _Redirect):
                url = _joined(url, answer.location)
                continue
            return answer
        raise SourceError(f"the endpoint redirects more than {_MOST_REDIRECTS} times")

    def _check_host(self, url: str) -> None:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https") or (self._secure and parts.scheme != "https"):
            raise SourceError("the endpoint redirects away from https, which is not followed")
        if host not in self._hosts:
            raise SourceError(
                "the endpoint redirects to another host; add that host to http.hosts in pack.yaml"
            )
        if self._operator and host not in self._operator:
            raise SourceError(f"the host {host} is not in the setting source_hosts")

    def _send(self, url: str, deadline_ns: int) -> Json | _Redirect:
        left_s = (deadline_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise SourceError("the deadline passed before the request")
        own = (urlsplit(url).hostname or "").lower() == self._origin  # no other host gets the key
        headers = {"Authorization": f"Bearer {self._key}"} if self._key and own else {}
        try:
            with self._client.stream("GET", url, headers=headers, timeout=left_s) as response:
                if response.is_redirect:
                    return _Redirect(response.headers.get("Location", ""))
                if response.status_code == httpx.codes.NOT_FOUND:
                    return None
                if response.status_code != httpx.codes.OK:
                    raise SourceError(f"the endpoint answered {response.status_code}")
                content = self._read(response, deadline_ns)
        except httpx.TimeoutException:
            raise SourceError("the endpoint did not answer by the deadline") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError(f"the endpoint cannot be reached: {type(error).__name__}") from None
        try:
            return strict_json.decode(content)
        except strict_json.JsonError:
            raise SourceError("the answer is no JSON") from None

    def _read(self, response: httpx.Response, deadline_ns: int) -> bytes:
        """The body of an answer; type, size and deadline are checked before and after each piece."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise SourceError("the answer is not application/json")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError("the answer is compressed, which was not requested")
        most, stated = self._http.max_bytes, response.headers.get("Content-Length", "0")
        content = bytearray()
        if not stated.isdigit() or int(stated) > most:
            raise SourceError(f"the answer has more than {most} bytes (http.max_bytes)")
        for piece in response.iter_raw(4_096):
            content += piece
            if len(content) > most:
                raise SourceError(f"the answer has more than {most} bytes (http.max_bytes)")
            if time.monotonic_ns() >= deadline_ns:
                raise SourceError("the endpoint did not answer by the deadline")
        return bytes(content)


class _Redirect:
    """Where an answer leads to."""

    def __init__(self, location: str) -> None:
        self.location = location


def _joined(url: str, location: str) -> str:
    """The URL that a redirect leads to. Raises SourceError."""
    try:
        joined = urljoin(url, location)
        _ = urlsplit(joined).hostname
    except ValueError:
        raise SourceError("the endpoint redirects to what is no URL") from None
    return joined


def _fields(result: Found) -> dict[str, Json]:
    return {"values": result.values, "fresh_at": result.fresh_at, "quality": result.quality}


def _filled(template: str, type: str, id: str) -> str:
    """The URL of an entity. Raises SourceError for an id that would lead to another path."""
    if id in _DOTS or type in _DOTS:
        raise SourceError("the id or the type is '.' or '..', which would lead to another path")
    values = {"{id}": quote(id, safe=""), "{type}": quote(type, safe="")}
    for name, value in values.items():
        template = template.replace(name, value)
    return template
