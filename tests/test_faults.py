"""Networks and gateways that fail: each fault ends in time, as the right error, and no paid picture is lost.

The fears: a command that hangs for ever, an error that says nothing, and money spent on a picture that is gone.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import json
import random
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote

import generate
import pictures
import pytest
import trustme
from conftest import MODELS, Run, both_families, table
from gateway import Gateway, Reply

TIMEOUT_S, GRACE_S = 1.0, 1.5
PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)
ENCODED = base64.b64encode(PICTURE).decode()
CODES = {"auth": 4, "quota": 5, "unavailable": 6, "refused": 7, "rejected": 7, "response": 7, "save": 8}
KEY = "sk-faults-0123456789abcdefghijklmnop"

Talk = Callable[[socket.socket], None]


pytestmark = pytest.mark.usefixtures("short_waits")


class Timed:
    """A run with --json, how long it took, and the invariants that every run keeps."""

    def __init__(self, run: Run, family: str, *words: object, timeout: float = TIMEOUT_S):
        started = time.monotonic()
        flags = ("--model", MODELS[family], "--timeout", timeout, "--output", "out.jpeg")
        self.outcome = run("--json", "--prompt", "a red apple", *flags, *words)
        self.elapsed_s = time.monotonic() - started
        self.timeout_s = timeout
        assert "Traceback" not in self.outcome.err
        left = {path.name for path in Path.cwd().iterdir()}
        assert left <= {"out.jpeg", "out-2.jpeg"}

    def is_saved(self, data: bytes = PICTURE) -> dict[str, Any]:
        """The run ended well, with these bytes."""
        assert self.outcome.code == 0, self.outcome.out
        assert Path("out.jpeg").read_bytes() == data
        return self.outcome.json

    def is_error(self, kind: str, billed: str = "no", retryable: bool = False) -> dict[str, Any]:
        """The run ended as this error, in time, and nothing lies under the asked name."""
        error = self.outcome.json["error"]
        assert (error["kind"], error["billed"], error["retryable"]) == (kind, billed, retryable), error
        assert self.outcome.code == CODES[kind]
        assert error["message"] and error["hint"]
        assert self.elapsed_s < self.timeout_s + GRACE_S
        assert not Path("out.jpeg").exists()
        return error


def answer(family: str, encoded: str = ENCODED, **more: Any) -> dict[str, Any]:
    """The success of this family's endpoint."""
    if family == "openai":
        return {"created": 1, "data": [{"b64_json": encoded}], **more}
    content = f"![image](data:image/jpeg;base64,{encoded})"
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}], **more}


def linked(family: str, url: str) -> Reply:
    """A success that holds a link in place of the picture."""
    if family == "openai":
        return Reply(body={"data": [{"url": url, "b64_json": ""}]})
    return Reply(body={"choices": [{"message": {"content": f"Done.\n\n![image]({url})"}}]})


def head(length: int | None, *more: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", *more]
    lines += [f"Content-Length: {length}"] if length is not None else []
    return "\r\n".join([*lines, "", ""]).encode()


# --- Servers that no HTTP library would let us write ---


def read_request(connection: socket.socket) -> bytes:
    """One request, to the end of its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65_536) or b"\r\n\r\n"
    top, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in top.split(b"\r\n")[1:] if b": " in line)
    missing = int(fields.get(b"content-length", 0)) - len(body)
    while missing > 0 and (more := connection.recv(65_536)):
        received, missing = received + more, missing - len(more)
    return received


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(connection)


@contextlib.contextmanager
def server(talk: Talk, tls: ssl.SSLContext | None = None, receive_buffer: int = 0) -> Iterator[str]:
    """A server on loopback that gives each connection to talk(); its origin."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            # subtle: else bytes that wait to be sent behind others, not yet confirmed, would be lost in a reset
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # clients may leave at any time
                talk(tls.wrap_socket(self.request, server_side=True) if tls else self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def server_bind(self) -> None:
            if receive_buffer:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            super().server_bind()

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"{'https' if tls else 'http'}://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture
def lead_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def call(origin: str) -> None:
        monkeypatch.setenv("OMNIMAAS_API_KEY", KEY)
        monkeypatch.setenv("OMNIMAAS_BASE_URL", f"{origin}/v1")

    return call


# --- Nobody there ---


@contextlib.contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def deaf_port() -> Iterator[str]:
    """A port whose queue of new connections is full: connecting to it gets no answer at all."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def unknown_host() -> Iterator[str]:
    yield "http://no-such-host.invalid"  # RFC 6761: never resolves


UNREACHABLE = {"refused": (closed_port,), "unknown-host": (unknown_host,), "deaf": (deaf_port,)}


@both_families
@table("place", UNREACHABLE)
def test_gateway_out_of_reach(run: Run, lead_to: Any, family: str, place: Any) -> None:
    """Never connected, so nothing can have been billed, and the error says so."""
    with place() as origin:
        lead_to(origin)
        error = Timed(run, family).is_error("unavailable", "no", True)
    assert origin.partition("//")[2].partition(":")[0] in error["message"]
    assert KEY not in json.dumps(error)


def test_connecting_has_a_limit_of_its_own(run: Run, lead_to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that is down is known in 30 s, however long a picture may take."""
    assert generate.CONNECT_TIMEOUT_S == 30
    monkeypatch.setattr(generate, "CONNECT_TIMEOUT_S", 0.8)
    with deaf_port() as origin:
        lead_to(origin)
        timed = Timed(run, "gemini", timeout=60)
        timed.is_error("unavailable", "no", True)
        assert timed.elapsed_s < 0.8 + GRACE_S


# --- The gateway fails on the way to a picture ---


def silent(**changes: Any) -> tuple[Reply, str, bool, str]:
    return Reply(**changes), "unavailable", True, "maybe"


FAULTS = {  # (what the gateway does, kind, retryable, billed)
    "reset-before-the-headers": silent(drop="before"),
    "reset-amid-headers": silent(drop="headers"),
    "closed-before-the-headers": silent(raw=b""),
    "closed-amid-the-status-line": silent(raw=b"HTTP/1.1 2"),
    "closed-after-headers": silent(raw=head(5000)),
    "closed-after-headers-chunked": silent(raw=head(None, "Transfer-Encoding: chunked")),
    "silence": silent(hang="accept"),
    "silence-amid-headers": silent(hang="headers"),
    "silence-amid-the-status-line": silent(raw=b"HTTP/1.", hang="body"),
    "silence-after-headers": silent(raw=head(5000), hang="body"),
    "silence-with-blanks": silent(raw=head(5000) + b"\n" * 40, hang="body"),
    "byte-a-second-head": silent(trickle=(1, 1.0), trickle_head=True),
    "byte-a-second-body": silent(trickle=(1, 1.0)),
    "byte-a-second-chunked": silent(trickle=(1, 1.0), chunked=True),
    "many-bytes-too-slowly": silent(body=" " * 40_000, trickle=(100, 0.05)),
    "no-http": silent(raw=b"\x15\x03\x01 nonsense\r\n\r\n"),
    "ssh": silent(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
    "header-of-100-kb": silent(raw=head(2, "X-Long: " + "x" * 100_000) + b"{}"),
    "1000-headers": silent(raw=head(2, *[f"X-{i}: y" for i in range(1000)]) + b"{}"),
    "bad-chunk-size": silent(raw=head(None, "Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n"),
    "endless-blanks": silent(body=b"", endless=True),
    "endless-chunks": silent(body=b"", endless=True, chunked=True),
    "500-cut": silent(status=500, body="x" * 5000, truncate=100),
    "502-silent-amid-the-page": silent(status=502, body="<html>" + "x" * 5000, hang="body"),
    "524-reset-amid-the-page": silent(status=524, body="<html>" + "x" * 5000, drop="body"),
    "503-endless": silent(status=503, body=b"", endless=True),
    "401-cut": (Reply(401, truncate=10), "auth", False, "no"),
    "403-reset": (Reply(403, drop="body"), "auth", False, "no"),
    "429-silent-amid-the-body": (Reply(429, hang="body"), "quota", True, "no"),
    "400-byte-a-second": (Reply(400, trickle=(1, 1.0)), "rejected", False, "no"),
    "402-endless": (Reply(402, body=b"", endless=True), "quota", False, "no"),
}


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MB of nothing only keeps the machine busy; 4 MB are as endless."""
    assert generate.MAX_ANSWER_BYTES >= 64 * 2**20  # room for the largest PNG in base64
    monkeypatch.setattr(generate, "MAX_ANSWER_BYTES", 4 * 2**20)


@pytest.mark.usefixtures("small_limit")
@both_families
@table("reply, kind, retryable, billed", FAULTS)
def test_fault_of_the_gateway(
    run: Run, gateway: Gateway, family: str, reply: Reply, kind: str, retryable: bool, billed: str
) -> None:
    """One request, one error, in time; a status that did arrive is believed although its body did not."""
    gateway.answer(reply)
    Timed(run, family).is_error(kind, billed, retryable)
    assert len(gateway.calls) == 1


def talk_nothing(connection: socket.socket) -> None:
    """Never reads, never writes: the client's own sending gets stuck."""
    threading.Event().wait(TIMEOUT_S * 6)


def talk_continue(connection: socket.socket) -> None:
    """ "Go on", for ever."""
    read_request(connection)
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def talk_headers(connection: socket.socket) -> None:
    """Headers, for ever."""
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: yes\r\n")


def talk_one_header(connection: socket.socket) -> None:
    """A single header without an end."""
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-More: ")
    while True:
        connection.sendall(b"y" * 4096)


def talk_slow_reader(connection: socket.socket) -> None:
    """Takes the request at 8 bytes a second."""
    while connection.recv(8):
        threading.Event().wait(1)


TALKS = {
    "never-reads": (talk_nothing,),
    "reads-8-bytes-a-second": (talk_slow_reader,),
    "endless-100-continue": (talk_continue,),
    "endless-headers": (talk_headers,),
    "endless-header": (talk_one_header,),
}


@both_families
@table("talk", TALKS)
def test_fault_of_the_connection(
    run: Run, lead_to: Any, family: str, talk: Talk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same while a heavy request is still on its way up."""
    heavy = tmp_path_factory.mktemp("heavy") / "heavy.jpg"
    heavy.write_bytes(pictures.padded(1_048_576))
    with server(talk, receive_buffer=4096) as origin:
        lead_to(origin)
        words = ["--attempts", 1, *["--reference-image", heavy] * 4]
        Timed(run, family, *words).is_error("unavailable", "maybe", True)


@both_families
def test_reset_before_the_request(run: Run, lead_to: Any, family: str) -> None:
    """Whether the client was connected when the reset came is a matter of microseconds, and of `billed`."""
    with server(reset) as origin:
        lead_to(origin)
        timed = Timed(run, family)
        billed = timed.outcome.json["error"]["billed"]
        timed.is_error("unavailable", billed, True)
        assert billed in ("no", "maybe")


@both_families
def test_connection_closed_amid_headers(run: Run, gateway: Gateway, family: str) -> None:
    """Python's HTTP client takes the end of the stream for the end of the headers, so this may be an empty answer."""
    gateway.answer(Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: applic"))
    timed = Timed(run, family)
    error = timed.outcome.json["error"]
    assert (error["kind"], error["billed"]) in (("unavailable", "maybe"), ("response", "yes"))
    timed.is_error(error["kind"], error["billed"], error["kind"] == "unavailable")


def test_answer_that_comes_before_the_request_is_whole(
    run: Run, lead_to: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A proxy that refuses a heavy request half way is quoted, not called a broken connection."""
    heavy = tmp_path_factory.mktemp("heavy") / "heavy.jpg"
    heavy.write_bytes(pictures.padded(1_048_576))

    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        while connection.recv(65_536):
            pass

    with server(talk) as origin:
        lead_to(origin)
        error = Timed(run, "openai", *["--reference-image", heavy] * 4, timeout=10).is_error("rejected")
        assert error["status"] == 413


# --- The answer breaks off: what arrived is on disk ---


def cut_off(family: str, how: str, body: bytes, length: int) -> Reply:
    """An answer of which so many bytes arrive before the fault."""
    if how == "closed":
        return Reply(body=body, truncate=length)
    if how == "closed-chunked":
        return Reply(body=body, truncate=length, chunked=True)
    if how == "closed-without-length":  # nothing but the JSON's own end could tell
        return Reply(raw=head(None, "Connection: close") + body[:length])
    if how == "short-length":
        return Reply(body=body, headers={"Content-Length": str(length)})
    end = {"drop": "body"} if how.startswith("reset") else {"hang": "body"}
    if how.endswith("chunked"):
        chunks = b"".join(
            b"%x\r\n%s\r\n" % (len(body[i : i + 4000]), body[i : i + 4000]) for i in range(0, length, 4000)
        )
        excess = len(body[: -(-length // 4000) * 4000]) - length
        return Reply(raw=head(None, "Transfer-Encoding: chunked") + chunks[: len(chunks) - excess - 2], **end)
    return Reply(raw=head(len(body)) + body[:length], **end)


CUTS = ("closed", "closed-chunked", "closed-without-length", "short-length")
CUTS += ("reset", "reset-chunked", "silent", "silent-chunked")


@both_families
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_half_a_picture_is_kept(run: Run, gateway: Gateway, kept: Path, family: str, how: str, share: float) -> None:
    """The caller has paid for it: what arrived is on disk, named in the error, and is the picture's beginning."""
    body = json.dumps(answer(family)).encode()
    gateway.answer(cut_off(family, how, body, body.index(b"/9j/") + int(len(ENCODED) * share)))
    timed = Timed(run, family)
    error = timed.outcome.json["error"]
    assert (error["kind"], error["billed"]) in (("unavailable", "maybe"), ("unavailable", "yes"), ("response", "yes"))
    assert timed.outcome.code == CODES[error["kind"]]
    assert timed.elapsed_s < TIMEOUT_S + GRACE_S
    assert not Path("out.jpeg").exists()
    saved = Path(error["saved_at"])
    assert [saved] == list(kept.iterdir())
    assert saved.suffix in (".jpg", ".jpeg") and len(saved.read_bytes()) > len(PICTURE) * share - 3
    assert PICTURE.startswith(saved.read_bytes())
    assert str(saved) in timed.outcome.err


@both_families
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("place", ["after-its-last-letter", "after-its-quote", "amid-the-rest"])
def test_whole_picture_before_the_cut_is_saved(
    run: Run, gateway: Gateway, kept: Path, family: str, how: str, place: str
) -> None:
    """All of the picture arrived and only the small print is missing: that is a success."""
    body = json.dumps(answer(family, usage={"filler": "x" * 3000})).encode()
    end = body.index(ENCODED.encode()) + len(ENCODED)
    more = {"after-its-last-letter": 0, "after-its-quote": body[end:].index(b'"') + 1, "amid-the-rest": 1500}[place]
    gateway.answer(cut_off(family, how, body, end + more))
    Timed(run, family).is_saved()
    assert not list(kept.iterdir())


@pytest.mark.usefixtures("small_limit")
@both_families
def test_whole_picture_before_endless_blanks_is_saved(run: Run, gateway: Gateway, family: str) -> None:
    gateway.answer(Reply(body=json.dumps(answer(family)), endless=True))
    Timed(run, family, timeout=3).is_saved()


@both_families
def test_whole_picture_in_a_cut_gzip_is_saved(run: Run, gateway: Gateway, family: str) -> None:
    """Compression does not make a cut any worse."""
    filler = base64.b64encode(random.Random(1).randbytes(60_000)).decode()
    body = gzip.compress(json.dumps(answer(family, usage={"filler": filler})).encode())
    gateway.answer(Reply(body=body, headers={"Content-Encoding": "gzip"}, truncate=len(body) - 20_000))
    Timed(run, family).is_saved()


@both_families
@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints\r\nLink: </a.css>; rel=preload"])
def test_an_interim_answer_is_passed_over(run: Run, gateway: Gateway, family: str, status: str) -> None:
    """Taken for the answer, it would lose a paid picture, and with a reference two more."""
    body = json.dumps(answer(family)).encode()
    gateway.answer(Reply(raw=f"HTTP/1.1 {status}\r\n\r\n".encode() * 2 + head(len(body)) + body))
    Timed(run, family).is_saved()


@pytest.mark.usefixtures("small_limit")
def test_drafts_may_be_as_large_as_the_picture(run: Run, gateway: Gateway) -> None:
    """Cut off at the limit for one picture, the answer would end amid the last, and a draft be taken for it."""
    draft = base64.b64encode(PICTURE + bytes(3_000_000)).decode()
    gateway.answer(Reply(body=answer("gemini", f"{draft})\n![image](data:image/jpeg;base64,{ENCODED}")))
    Timed(run, "gemini", timeout=60).is_saved()


@pytest.mark.usefixtures("small_limit")
@both_families
def test_endless_base64_is_not_lost(run: Run, lead_to: Any, kept: Path, family: str) -> None:
    """A picture whose base64 never ends is stopped at the size limit, and what arrived is on disk."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        text = json.dumps(answer(family)).encode()
        connection.sendall(head(None, "Connection: close") + text[: text.index(ENCODED[-8:].encode()) - 4])
        while True:
            connection.sendall(b"A" * 65_536)

    with server(talk) as origin:
        lead_to(origin)
        timed = Timed(run, family, timeout=3)
    saved = Path("out.jpeg") if timed.outcome.code == 0 else Path(timed.outcome.json["error"]["saved_at"])
    assert timed.elapsed_s < 3 + GRACE_S
    assert saved.read_bytes().startswith(PICTURE[: len(PICTURE) - 20])


def test_first_of_two_pictures_survives_the_cut(run: Run, gateway: Gateway) -> None:
    """n = 2 and the connection breaks in the second: the first one is saved, and the loss is told."""
    body = json.dumps({"data": [{"b64_json": ENCODED}, {"b64_json": ENCODED}]}).encode()
    gateway.answer(Reply(body=body, truncate=len(body) - len(ENCODED) // 2))
    facts = Timed(run, "openai", "--n", 2).is_saved()
    assert len(facts["paths"]) == 1 and any("1 of" in warning for warning in facts["warnings"])


def test_half_a_picture_outlives_the_retries(run: Run, gateway: Gateway, kept: Path, reference: Path) -> None:
    """The first attempt brought half of a paid picture, the next ones nothing: the half is still on disk."""
    body = json.dumps(answer("gemini")).encode()
    gateway.answer(Reply(body=body, drop="body"), Reply(503), Reply(503))
    timed = Timed(run, "gemini", "--reference-image", reference)
    error = timed.is_error("unavailable", "maybe", True)
    assert len(gateway.calls) == 3
    assert PICTURE.startswith(Path(error["saved_at"]).read_bytes())


def test_half_a_picture_is_superseded_by_a_whole_one(run: Run, gateway: Gateway, kept: Path, reference: Path) -> None:
    gateway.answer(Reply(body=answer("gemini"), drop="body"), Reply(body=answer("gemini")))
    Timed(run, "gemini", "--reference-image", reference).is_saved()
    assert len(gateway.calls) == 2


@both_families
def test_damaged_picture_is_kept(run: Run, gateway: Gateway, kept: Path, family: str) -> None:
    """A picture that arrived whole but will not decode was paid for, too."""
    damaged = pictures.cut(PICTURE, 0.5)
    gateway.answer(Reply(body=answer(family, base64.b64encode(damaged).decode())))
    error = Timed(run, family).is_error("response", "yes")
    assert Path(error["saved_at"]).read_bytes() == damaged


# --- Redirects ---


@both_families
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirect_to_another_host_is_not_followed(run: Run, gateway: Gateway, family: str, status: int) -> None:
    """The key and the prompt stay with the gateway that they were meant for."""
    with Gateway() as other:
        gateway.answer(Reply(status, {"Location": f"{other.url}/chat/completions"}))
        error = Timed(run, family).is_error("rejected")
        assert other.origin in error["message"] and error["status"] == status
        assert not other.requests


@both_families
def test_endless_redirects_of_the_call(run: Run, gateway: Gateway, family: str) -> None:
    gateway.answer_always(lambda received: Reply(307, {"Location": received.target}))
    Timed(run, family).is_error("rejected")
    assert len(gateway.requests) == 1


def test_redirect_without_location(run: Run, gateway: Gateway) -> None:
    gateway.answer(Reply(302))
    Timed(run, "gemini").is_error("rejected")


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def talk_success(connection: socket.socket) -> None:
    path = read_request(connection).split(b" ", 2)[1]
    body = json.dumps(answer("gemini" if path.endswith(b"/chat/completions") else "openai")).encode()
    connection.sendall(head(len(body), "Connection: close") + body)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_private_authority_can_be_trusted(
    run: Run, lead_to: Any, authority: trustme.CA, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with authority.cert_pem.tempfile() as bundle:
        monkeypatch.setenv(variable, bundle)
        with server(talk_success, tls_context(authority.issue_cert("127.0.0.1"))) as origin:
            lead_to(origin)
            Timed(run, "gemini", timeout=5).is_saved()


@table(
    "trusted, options",
    {
        "unknown-authority": (False, {"identities": "127.0.0.1"}),
        "another-host": (True, {"identities": "example.org"}),
        "expired": (
            True,
            {"identities": "127.0.0.1", "not_after": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)},
        ),
    },
)
@both_families
def test_bad_certificate(
    run: Run, lead_to: Any, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch,
    family: str, trusted: bool, options: dict[str, Any], reference: Path,
) -> None:  # fmt: skip
    """The key never reaches a server that cannot prove who it is, and trying again is pointless."""
    heard: list[bytes] = []
    certificate = authority.issue_cert(options["identities"], not_after=options.get("not_after"))
    with authority.cert_pem.tempfile() as bundle:
        if trusted:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with server(lambda connection: heard.append(connection.recv(9999)), tls_context(certificate)) as origin:
            lead_to(origin)
            error = Timed(run, family, "--reference-image", reference, timeout=4).is_error("unavailable", "no", False)
    assert "certificate" in error["message"].lower() or "tls" in error["message"].lower()
    assert not any(heard)


@both_families
def test_plain_http_behind_an_https_url(run: Run, lead_to: Any, family: str) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with server(talk) as origin:
        lead_to(origin.replace("http:", "https:"))
        Timed(run, family, timeout=4).is_error("unavailable", "no", False)


def test_https_behind_a_plain_http_url(run: Run, lead_to: Any, authority: trustme.CA) -> None:
    with server(talk_success, tls_context(authority.issue_cert("127.0.0.1"))) as origin:
        lead_to(origin.replace("https:", "http:"))
        Timed(run, "gemini", timeout=4).is_error("unavailable", "maybe", True)


def test_silent_handshake(run: Run, lead_to: Any) -> None:
    """The connection stands but TLS never does: nothing was sent yet."""
    with server(talk_nothing) as origin:
        lead_to(origin.replace("http:", "https:"))
        Timed(run, "gemini").is_error("unavailable", "no", True)


def test_unreadable_authority_file(run: Run, lead_to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/authority.pem")
    with server(talk_success) as origin:
        lead_to(origin.replace("http:", "https:"))
        error = Timed(run, "gemini").outcome.json["error"]
    assert error["kind"] in ("config", "unavailable") and error["billed"] == "no"
    assert "REQUESTS_CA_BUNDLE" in error["message"] + error["hint"]


@both_families
def test_tls_connection_that_is_reset_amid_the_picture(
    run: Run, lead_to: Any, authority: trustme.CA, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        body = json.dumps(answer(family)).encode()
        connection.sendall(head(len(body)) + body[: len(body) // 2])
        reset(connection)

    with authority.cert_pem.tempfile() as bundle:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
        with server(talk, tls_context(authority.issue_cert("127.0.0.1"))) as origin:
            lead_to(origin)
            error = Timed(run, family, timeout=5).is_error("unavailable", "maybe", True)
    assert PICTURE.startswith(Path(error["saved_at"]).read_bytes())


# --- The picture's own URL fails: the URL is in the error ---

LINK_FAULTS = {
    "expired-403": (Reply(403, body="<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),),
    "401": (Reply(401),),
    "404": (Reply(404),),
    "410": (Reply(410),),
    "429": (Reply(429, {"Retry-After": "30"}),),
    "500": (Reply(500),),
    "503-html": (Reply(503, body="<html><title>Down</title></html>"),),
    "html": (Reply(body="<html><title>Sign in</title></html>"),),
    "html-called-png": (Reply(body=b"<html>Sign in</html>", headers={"Content-Type": "image/png"}),),
    "empty": (Reply(body=b""),),
    "204": (Reply(204, body=b"", headers={"Content-Length": None}),),
    "json-error": (Reply(body={"error": {"message": "gone"}}),),
    "another-format": (Reply(body=pictures.PDF),),
    "damaged-picture": (Reply(body=pictures.cut(PICTURE, 0.5)),),
    "truncated": (Reply(body=PICTURE, truncate=9000),),
    "truncated-chunked": (Reply(body=PICTURE, truncate=9000, chunked=True),),
    "reset-before": (Reply(drop="before"),),
    "reset-amid-headers": (Reply(drop="headers", body=PICTURE),),
    "reset-amid-the-body": (Reply(drop="body", body=PICTURE),),
    "silent": (Reply(hang="accept"),),
    "silent-amid-headers": (Reply(hang="headers", body=PICTURE),),
    "silent-amid-the-body": (Reply(hang="body", body=PICTURE),),
    "byte-a-second": (Reply(body=PICTURE, trickle=(1, 1.0)),),
    "byte-a-second-head": (Reply(body=PICTURE, trickle=(1, 1.0), trickle_head=True),),
    "endless": (Reply(body=b"", endless=True),),
    "no-http": (Reply(raw=b"hello\r\n\r\n"),),
    "redirects-for-ever": (lambda received: Reply(302, {"Location": received.target}),),
    "redirect-to-a-file": (Reply(302, {"Location": "file:///etc/passwd"}),),
    "redirect-to-ftp": (Reply(302, {"Location": "ftp://127.0.0.1/x.png"}),),
    "redirect-to-nowhere": (Reply(302, {"Location": "http://127.0.0.1:1/x.png"}),),
    "redirect-to-an-unknown-host": (Reply(302, {"Location": "http://no-such-host.invalid/x.png"}),),
    "redirect-to-nonsense": (Reply(302, {"Location": "http://[:::"}),),
    "redirect-without-location": (Reply(302),),
}


@both_families
@table("reply", LINK_FAULTS)
def test_result_url_that_fails(run: Run, gateway: Gateway, kept: Path, family: str, reply: Any) -> None:
    """The picture was made and paid for: its URL, query and all, is in the error, and nothing is paid for twice."""
    url = f"{gateway.origin}/media/x.jpg?Expires=1&Signature=a%2Bb%3D&k=v"
    gateway.answer(linked(family, url))
    gateway.answer_always(reply, path="/media")
    timed = Timed(run, family, timeout=1.5)
    error = timed.is_error("response", "yes", timed.outcome.json["error"]["retryable"])
    assert error["image_url"] == url and url in timed.outcome.err
    assert len(gateway.calls) == 1
    fetches = [request for request in gateway.requests if request.method == "GET"]
    assert fetches and fetches[0].target == url[len(gateway.origin) :]
    assert all(gateway.key not in str(request.headers) + request.target for request in fetches)


@both_families
def test_result_url_that_fails_is_not_paid_for_again(run: Run, gateway: Gateway, family: str, reference: Path) -> None:
    """Even with references, where attempts are repeated, a picture that exists is not ordered once more."""
    gateway.answer_always(linked(family, f"{gateway.origin}/media/missing.jpg"))
    timed = Timed(run, family, "--reference-image", reference)
    assert timed.outcome.json["error"]["billed"] == "yes"
    assert len(gateway.calls) == 1


@both_families
@table("place", UNREACHABLE)
def test_result_url_out_of_reach(run: Run, gateway: Gateway, family: str, place: Any) -> None:
    with place() as origin:
        gateway.answer(linked(family, f"{origin}/x.png"))
        timed = Timed(run, family)
        error = timed.is_error("response", "yes", timed.outcome.json["error"]["retryable"])
    assert error["image_url"] == f"{origin}/x.png"


def test_result_url_with_a_bad_certificate(run: Run, gateway: Gateway, authority: trustme.CA) -> None:
    with server(talk_success, tls_context(authority.issue_cert("127.0.0.1"))) as origin:
        gateway.answer(linked("openai", f"{origin}/x.png"))
        timed = Timed(run, "openai", timeout=3)
        error = timed.is_error("response", "yes", timed.outcome.json["error"]["retryable"])
    assert error["image_url"] == f"{origin}/x.png"


@both_families
@table(
    "replies",
    {
        "third-try": ([Reply(500), Reply(drop="before")],),
        "after-a-cut": ([Reply(body=PICTURE, truncate=9000)],),
        "after-404": ([Reply(404)],),  # storage that is not consistent at once
        "after-silence": ([Reply(hang="accept")],),
        "after-half": ([Reply(body=PICTURE, drop="body"), Reply(body=PICTURE, hang="body")],),
    },
)
def test_fetching_is_free_and_tried_again(run: Run, gateway: Gateway, family: str, replies: list[Reply]) -> None:
    url = gateway.publish("x.jpg", PICTURE, "image/jpeg")
    gateway.answer(linked(family, url))
    gateway.answer(*replies, path="/media")
    Timed(run, family, timeout=4).is_saved()
    assert len(gateway.requests) == 1 + len(replies) + 1


def test_fetching_has_three_tries(run: Run, gateway: Gateway) -> None:
    gateway.answer(linked("openai", f"{gateway.origin}/media/x.jpg"))
    gateway.answer_always(Reply(500), path="/media")
    Timed(run, "openai")
    assert len(gateway.requests) == 1 + 3


@both_families
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_result_url_is_followed_to_another_host_without_the_key(
    run: Run, gateway: Gateway, family: str, status: int
) -> None:
    """Storage redirects are common; the key is for the gateway alone."""
    with Gateway(key="sk-another-key-0123456789") as other:
        there = other.publish("there.jpg", PICTURE, "image/jpeg")
        gateway.answer(linked(family, f"{gateway.origin}/media/here.jpg"))
        gateway.answer(Reply(status, {"Location": there}), path="/media")
        Timed(run, family, timeout=4).is_saved()
        (request,) = other.requests
        assert gateway.key not in str(request.headers) + request.target
        assert request.headers.get("Authorization") is None and request.headers.get("Cookie") is None


def test_result_url_is_followed_to_a_relative_place(run: Run, gateway: Gateway) -> None:
    gateway.publish("there.jpg", PICTURE, "image/jpeg")
    gateway.answer(linked("openai", f"{gateway.origin}/media/here.jpg"))
    gateway.answer(Reply(302, {"Location": "there.jpg"}), path="/media")
    Timed(run, "openai", timeout=4).is_saved()


def test_result_url_is_followed_to_a_place_beyond_ascii(run: Run, gateway: Gateway) -> None:
    """A Location is bytes, and most servers that write such ones mean UTF-8."""
    gateway.publish(quote("图.jpg"), PICTURE, "image/jpeg")
    gateway.answer(linked("openai", f"{gateway.origin}/media/here.jpg"))
    gateway.answer(Reply(302, {"Location": "图.jpg".encode().decode("latin-1")}), path="/media")
    Timed(run, "openai", timeout=4).is_saved()


def test_one_link_of_two_fails(run: Run, gateway: Gateway) -> None:
    """n = 2: what could be fetched is saved, and the URL of the other one is said."""
    good, bad = gateway.publish("good.jpg", PICTURE, "image/jpeg"), f"{gateway.origin}/media/bad.jpg"
    gateway.answer(Reply(body={"data": [{"url": bad}, {"url": good}]}))
    timed = Timed(run, "openai", "--n", 2, timeout=3)
    facts = timed.is_saved()
    assert len(facts["paths"]) == 1
    assert bad in timed.outcome.err and any(bad in warning for warning in facts["warnings"])


@pytest.mark.parametrize("fault", [Reply(hang="accept"), Reply(404)], ids=["silent", "missing"])
def test_all_links_fail(run: Run, gateway: Gateway, fault: Reply) -> None:
    """n = 5 and storage is down: still in time, and each of the paid pictures has its URL in the error."""
    urls = [f"{gateway.origin}/media/{number}.jpg" for number in range(5)]
    gateway.answer(Reply(body={"data": [{"url": url} for url in urls]}))
    gateway.answer_always(fault, path="/media")
    timed = Timed(run, "openai", "--n", 5)
    timed.is_error("response", "yes", timed.outcome.json["error"]["retryable"])
    assert [url for url in urls if url not in timed.outcome.out] == []


def test_silent_link_leaves_time_for_the_others(run: Run, gateway: Gateway) -> None:
    good = [gateway.publish(f"{number}.jpg", PICTURE, "image/jpeg") for number in range(2)]
    bad = f"{gateway.origin}/media/silent.jpg"
    gateway.answer(Reply(body={"data": [{"url": url} for url in (bad, *good)]}))
    gateway.answer_always(Reply(hang="accept"), path="/media/silent")
    timed = Timed(run, "openai", "--n", 3, timeout=2)
    assert len(timed.is_saved()["paths"]) == 2
    assert bad in timed.outcome.err and timed.elapsed_s < 2 + GRACE_S


@both_families
def test_link_is_the_way_out_of_damaged_base64(run: Run, gateway: Gateway, family: str) -> None:
    """Both were given and one is broken: the other one counts."""
    url, half = gateway.publish("x.jpg", PICTURE, "image/jpeg"), base64.b64encode(pictures.cut(PICTURE, 0.5)).decode()
    if family == "openai":
        gateway.answer(Reply(body={"data": [{"b64_json": half, "url": url}]}))
    else:
        content = [
            {"type": "image_url", "image_url": {"url": link}} for link in (f"data:image/jpeg;base64,{half}", url)
        ]
        gateway.answer(Reply(body={"choices": [{"message": {"content": content}}]}))
    Timed(run, family, timeout=3).is_saved()


def test_no_thread_stays_behind(run: Run, gateway: Gateway) -> None:
    """A caller that makes a thousand pictures must not gather a thread for each silent server."""
    before = threading.active_count()
    gateway.answer_always(Reply(hang="body", body=PICTURE))
    for _ in range(3):
        Timed(run, "gemini", timeout=0.3).is_error("unavailable", "maybe", True)
    deadline = time.monotonic() + 5
    gateway.release()
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # threads end by themselves; there is no event for it
    assert threading.active_count() <= before
