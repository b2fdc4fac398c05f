"""An OCI registry for tests, over https, that asks for a login as public ones do, and misbehaves on request."""

from __future__ import annotations

import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.stores import Server

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE, UNPACK = "org.opencontainers.image.title", "io.deis.oras.content.unpack"
EMPTY = b"{}"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def manifest_of(files: Mapping[str, bytes], folders: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the manifest that `oras push` writes for files, and for folders that are given as archives."""
    layers = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest_of(data),
            "size": len(data),
            "annotations": {TITLE: name, **({UNPACK: "true"} if name in folders else {})},
        }
        for name, data in files.items()
    ]
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(EMPTY), "size": len(EMPTY)}
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}


@dataclass
class Registry:
    """What the registry has, and how it behaves."""

    port: int = 0
    manifests: dict[str, bytes] = field(default_factory=dict)
    """By tag and by digest."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """By digest."""
    login: str = ""
    """user:password in base64; empty: anybody may read."""
    challenge: str = "Bearer"
    """Scheme with which it asks for the login."""
    realm: str = ""
    """Address of the tokens; empty: this server."""
    requests_per_token: int = 1_000_000
    """After so many requests, a token has expired."""
    redirect: str = ""
    """Address to which requests for blobs are redirected, such as those of a content delivery network."""
    cut_first: int = -1
    """Bytes after which the first blob is cut; -1 does not cut it."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Requests for which each token is still valid."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    """(path, kind of the login) of each GET request."""

    def push(self, tag: str, files: Mapping[str, bytes], folders: tuple[str, ...] = ()) -> str:
        """Stores an artifact; returns its digest."""
        content = json.dumps(manifest_of(files, folders)).encode()
        self.blobs |= {digest_of(data): data for data in files.values()}
        self.manifests |= {tag: content, digest_of(content): content}
        return digest_of(content)

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"


class Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry
    """Set by `registry`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        given = self.headers.get("Authorization", "")
        if self.command == "GET":
            self.registry.seen.append((self.path, given.partition(" ")[0]))
        if path == "/token":
            self.send_token(given)
        elif not self.is_allowed(given):
            self.refuse()
        elif "/manifests/" in path:
            self.send(self.registry.manifests.get(path.rpartition("/")[2]))
        elif self.registry.redirect:
            self.send_response(307)
            self.send_header("Location", self.registry.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send(self.registry.blobs.get(path.rpartition("/")[2]))

    def is_allowed(self, given: str) -> bool:
        if not self.registry.login:
            return True
        if self.registry.challenge == "Basic":
            return given == f"Basic {self.registry.login}"
        token = given.removeprefix("Bearer ")
        if self.command == "GET" and token in self.registry.tokens:
            self.registry.tokens[token] -= 1
        return self.registry.tokens.get(token, -1) >= 0

    def refuse(self) -> None:
        realm = self.registry.realm or f"https://{self.registry.host}/token"
        self.send_response(401)
        self.send_header("WWW-Authenticate", f'{self.registry.challenge} realm="{realm}",service="test"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_token(self, given: str) -> None:
        if given != f"Basic {self.registry.login}":
            self.refuse()
            return
        token = f"token-{len(self.registry.tokens)}"
        self.registry.tokens[token] = self.registry.requests_per_token
        self.send(json.dumps({"token": token}).encode())

    def send(self, content: bytes | None) -> None:
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[start:]
        if "/blobs/" in self.path and 0 <= self.registry.cut_first < len(body):
            body, self.registry.cut_first = body[: self.registry.cut_first], -1
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent: tests look at what was seen."""


@contextmanager
def registry(certificates: Path) -> Iterator[Registry]:
    """A registry on this machine.

    Args:
        certificates: folder for the certificate of its authority, ca.pem.
    """
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(certificates / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    state = Registry()
    server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"registry": state}))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    state.port = server.port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
