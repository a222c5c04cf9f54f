"""Networks that fail: each fault ends in time, as the right error, and no paid picture is lost.

The fears: a command that hangs for ever, money spent on a picture that is gone, a key gone astray.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import importlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import bodies
import generate
import pictures
import pytest
import trustme
from bodies import FINAL, answer, linked
from conftest import MODELS, Outcome, Run, table
from gateway import KEY, Gateway, Reply


class Asker:
    """ask(*words) makes one call, by default without references, for a picture in out.png."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        self.run, self.setenv = run, monkeypatch.setenv

    def __call__(self, *words: object, family: str = "gemini", timeout: float = 30) -> Outcome:
        flags = ("--model", MODELS[family], "--timeout", timeout, "--output", "out.png")
        outcome = self.run("--json", "--prompt", "a cup", *flags, *words)
        assert "Traceback" not in outcome.err
        assert {path.name for path in Path.cwd().iterdir()} <= {"out.png"}
        return outcome

    def at(self, origin: str) -> None:
        self.setenv("OMNIMAAS_API_KEY", KEY)
        self.setenv("OMNIMAAS_BASE_URL", f"{origin}/v1")

    def picture(self, *words: object, **options: Any) -> dict[str, Any]:
        """The facts of a call that ends well, with these bytes."""
        outcome = self(*words, **options)
        assert outcome.code == 0, outcome.out
        assert Path("out.png").read_bytes() == FINAL
        return outcome.json

    def error(self, expected: str, *words: object, **options: Any) -> dict[str, Any]:
        """The error of a call that fails: "kind, billed, retryable"; nothing has the asked name."""
        outcome = self(*words, **options)
        error = outcome.json["error"]
        known = f"{error['kind']} {error['billed']} {error['retryable']}"
        assert known.startswith(expected), error
        assert error["message"] and error["hint"] and not Path("out.png").exists()
        links = error.get("image_urls", [])
        assert error.get("image_url") == next(iter(links), None)
        assert all(link in outcome.err for link in links), "a paid picture's link is told whole"
        return error


@pytest.fixture
def ask(run: Run, short_waits: None, monkeypatch: pytest.MonkeyPatch) -> Asker:
    """64 MB of nothing only keep the machine busy, 4 MB are as endless; 1 s is as long as 30."""
    importlib.import_module("requests")  # so that no attempt's time goes into loading it
    assert generate.MAX_ANSWER_BYTES == 64 * 2**20  # room for the largest PNG in base64
    assert generate.FETCH_TIMEOUT_S == 30
    monkeypatch.setattr(generate, "MAX_ANSWER_BYTES", 4 * 2**20)
    monkeypatch.setattr(generate, "FETCH_TIMEOUT_S", 1, raising=False)
    return Asker(run, monkeypatch)


def head(length: int | None = None, *more: str) -> bytes:
    """The head of an answer, of that length or to the end of the connection."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", *more]
    lines += ["Connection: close"] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def read_request(connection: socket.socket) -> bytes:
    """One request, to the end of its body."""
    stream = connection.makefile("rb")
    lines = list(iter(stream.readline, b"\r\n"))
    lengths = [line.split()[1] for line in lines if line.lower().startswith(b"content-length")]
    return b"".join(lines) + stream.read(int(lengths[0]) if lengths else 0)


@contextlib.contextmanager
def server(talk: Any, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server on loopback that gives each connection to talk(); its origin."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # a heavy request gets stuck

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:  # clients may leave at any time
            talk(tls.wrap_socket(client, server_side=True) if tls else client)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"


UNREACHABLE = {  # base URL, further flags, what the message names
    "refused": ("http://127.0.0.1:1", (), "127.0.0.1"),
    "highest-port": ("http://127.0.0.1:65535", (), "127.0.0.1:65535"),
    "unknown-host": ("http://no-such-host.invalid", (), "no-such-host.invalid"),  # RFC 6761
    "telling-path": ("http://127.0.0.1:1/ssl/proxy", (), "refused"),
    "proxy": ("http://gateway.invalid", ("--proxy", "http://u:pa55word@127.0.0.1:1"), "proxy"),
}


@table("origin, flags, named", UNREACHABLE)
def test_gateway_out_of_reach(
    ask: Asker, reference: Path, origin: str, flags: tuple[str, ...], named: str
) -> None:
    """Never connected, so nothing was billed, however often it was tried."""
    ask.at(origin)
    error = ask.error("unavailable no True", "--reference-image", reference, *flags)
    assert named in error["message"] and "pa55word" not in json.dumps(error)
    is_here = "unset OMNIMAAS_BASE_URL OMNIMAAS_API_KEY" in error["hint"]
    assert is_here == origin.startswith("http://127")


UNREACHED = "Max retries exceeded with url: /ssl (Caused by host='proxy.example'"
WORDS = {  # what is said, and what a system, Python or urllib3 says of it, before anything was sent
    "its address is malformed": """
        InvalidURL: No host supplied
        LocationParseError: Failed to parse: 'a b'
        Invalid IPv6 URL""",
    "its name cannot be resolved": """
        Failed to resolve 'x'
        [Errno 11001] getaddrinfo failed
        [Errno -2] Name or service not known
        [Errno 8] nodename nor servname provided, or not known""",
    "TLS failed": """
        [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)
        CertificateError: hostname 'a' doesn't match 'b'""",
    "PySocks": "Missing dependencies for SOCKS support.",
    "the proxy cannot be reached": "Cannot connect to proxy.",
    "the time limit was reached": """
        Read timed out. (read timeout=30)
        ConnectTimeoutError""",
    "compression is broken": "Error -3 while decompressing data: incorrect header check",
    "cannot be reached: OSError.": "Authorization: Bearer something",
    "connection refused": f"{UNREACHED}: [Errno 111] Connection refused",
    "there is no route to it": """
        [Errno 101] Network is unreachable
        [Errno 113] No route to host""",
    "the connection was lost": """
        EOF occurred in violation of protocol (_ssl.c:1006)
        [SSL: UNEXPECTED_EOF_WHILE_READING] unexpected eof while reading (_ssl.c:1006)
        SSLZeroReturnError(6, 'TLS/SSL connection has been closed (EOF)')
        [Errno 104] Connection reset by peer
        [Errno 32] Broken pipe
        IncompleteRead(9 bytes read, 3 more expected)
        Connection closed
        Server disconnected
        Remote end hung up""",
}
SAID = [(text.strip(), words) for words in WORDS for text in WORDS[words].strip().split("\n")]


@pytest.mark.parametrize(("text", "words"), SAID)
def test_fault_in_plain_words(
    ask: Asker, gateway: Gateway, monkeypatch: Any, text: str, words: str
) -> None:
    """Their own text may quote headers and is never shown; some faults will not pass."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(text)

    monkeypatch.setattr("requests.Session.request", fail)
    lasting = ("its address is malformed", "TLS failed", "PySocks")
    error = ask.error(f"unavailable no {words not in lasting}")
    assert words in error["message"]


def test_tls_server_that_hangs_up(ask: Asker, reference: Path) -> None:
    """A balancer that is busy, not one that cannot be trusted: it is worth another try."""
    with server(lambda connection: connection.recv(4096)) as origin:
        ask.at(origin.replace("http", "https"))
        error = ask.error("unavailable no True", "--reference-image", reference)
    assert "lost" in error["message"]


@pytest.mark.parametrize("moment", ["start", "join"])
def test_nothing_is_sent_after_an_interrupt(
    gateway: Gateway, monkeypatch: Any, moment: str
) -> None:
    """Ctrl-C in a caller's program while the name is looked up: nobody would get the picture."""
    importlib.import_module("requests")
    resolve, act, go_on = socket.getaddrinfo, getattr(threading.Thread, moment), threading.Event()
    senders: list[threading.Thread] = []

    def interrupted(thread: threading.Thread, *_: object) -> None:
        senders.append(thread)
        if moment == "start":
            act(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(socket, "getaddrinfo", lambda *each: go_on.wait() and resolve(*each))
        patch.setattr(threading.Thread, moment, interrupted)
        generate.generate_gemini("a cup")
    go_on.set()
    senders[0].join()
    assert gateway.requests == []


def test_connecting_gets_30_seconds_at_most(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that is down is known soon, however long a picture may take."""
    assert generate.CONNECT_TIMEOUT_S == 30
    monkeypatch.setattr(generate, "CONNECT_TIMEOUT_S", 0.4)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        ask.at(f"http://127.0.0.1:{deaf.getsockname()[1]}")
        clients = [socket.socket() for _ in range(3)]
        for client in clients:  # they fill the queue of new connections: the next gets no answer
            client.setblocking(False)
            client.connect_ex(deaf.getsockname())
        ask.error("unavailable no True", timeout=600)  # which would be the end of this suite


# --- The gateway fails on the way to a picture ---

GONE = "unavailable maybe True"
FAULTS = {
    "reset": (Reply(drop="before"), GONE),
    "silence": (Reply(hang="accept"), GONE),
    "silence-after-headers": (Reply(raw=head(5000) + b"\n" * 40, hang="body"), GONE),
    "byte-a-second-head": (Reply(trickle=(1, 1.0), trickle_head=True), GONE),
    "byte-a-second-body": (Reply(trickle=(1, 1.0)), GONE),
    "no-http": (Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n"), GONE),
    "bad-chunk": (Reply(raw=head(None, "Transfer-Encoding: chunked") + b"zz\r\n{}"), GONE),
    "endless-blanks": (Reply(body=b"", endless=True), GONE),
    "500-cut": (Reply(500, body="x" * 5000, truncate=100), GONE),
    "401-cut": (Reply(401, truncate=10), "auth no False"),
    "429-silent": (Reply(429, hang="body"), "quota no True"),
}


@table("reply, expected", FAULTS)
def test_fault_of_the_gateway(ask: Asker, gateway: Gateway, reply: Reply, expected: str) -> None:
    """--timeout is the total time of an attempt; a status that did arrive is believed."""
    gateway.answer(reply)
    error = ask.error(expected, timeout=1)
    is_late = error["message"].endswith(": the time limit was reached.")
    assert ("Allow more time with --timeout" in error["hint"]) == is_late
    assert len(gateway.calls) == 1


def never_reads(connection: socket.socket) -> None:
    threading.Event().wait(5)


def sends_headers(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: yes\r\n")


def refuses(connection: socket.socket) -> None:
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    while connection.recv(65_536):
        pass


@pytest.mark.parametrize(
    ("talk", "expected"),
    [(refuses, "rejected no False"), (sends_headers, GONE), (never_reads, GONE)],
)
def test_heavy_request(ask: Asker, reference: Path, talk: Any, expected: str) -> None:
    """What goes wrong while 4 MB of references are still on their way up."""
    reference.write_bytes(pictures.padded(1_048_576, "PNG"))
    with server(talk) as origin:
        ask.at(origin)
        words = ["--attempts", 1, *["--reference-image", reference] * 4]
        ask.error(expected, *words, timeout=20 if talk is refuses else 3)


# --- The answer breaks off: what arrived is on disk ---

CUTS = {  # so many bytes of the body arrive before the fault
    "closed": (lambda body, n: Reply(body=body, truncate=n), GONE),
    "closed-chunked": (lambda body, n: Reply(body=body, truncate=n, chunked=True), GONE),
    "closed-without-length": (lambda body, n: Reply(raw=head() + body[:n]), "response yes"),
    "reset": (lambda body, n: Reply(raw=head(len(body)) + body[:n], drop="body"), GONE),
    "silent": (lambda body, n: Reply(raw=head(len(body)) + body[:n], hang="body"), GONE),
}


def body_of(family: str, **more: Any) -> tuple[bytes, int]:
    """An answer, and where the picture's base64 ends in it."""
    body = json.dumps({**answer(family, FINAL), **more}).encode()
    encoded = base64.b64encode(FINAL)
    return body, body.index(encoded) + len(encoded)


@table("cut, expected", CUTS)
def test_answer_that_breaks_off(
    ask: Asker, gateway: Gateway, kept: Path, cut: Any, expected: str
) -> None:
    """Half a picture is on disk and named; when only the small print is missing, all is well."""
    body, end = body_of("gemini", usage={"filler": "x" * 3000})
    gateway.answer(cut(body, end - 4000), cut(body, end + 1500))
    patience = 1 if cut is CUTS["silent"][0] else 30
    saved = Path(ask.error(expected, timeout=patience)["saved_at"])
    assert [saved] == list(kept.iterdir()) and saved.suffix == ".png"
    assert FINAL.startswith(saved.read_bytes()) and len(saved.read_bytes()) > len(FINAL) - 3010
    ask.picture(timeout=patience)


def test_whole_picture_before_endless_blanks_or_amid_a_gzip(ask: Asker, gateway: Gateway) -> None:
    body, _ = body_of("gemini", usage={"filler": bodies.SECOND.hex()})
    packed = gzip.compress(body)
    cut = Reply(200, {"Content-Encoding": "gzip"}, packed, truncate=len(packed) - 9000)
    gateway.answer(Reply(body=body, endless=True), cut)
    assert ask.picture() and ask.picture()


def test_packed_answer_that_grows_a_thousandfold(ask: Asker, gateway: Gateway) -> None:
    """It is unpacked piece by piece, to its end."""
    body, _ = body_of("gemini", usage={"filler": " " * 3_000_000, "total_tokens": 7})
    gateway.answer(Reply(body=body, gzip=True))
    assert ask.picture()["total_tokens"] == 7


def test_first_of_two_pictures_survives_the_cut(ask: Asker, gateway: Gateway) -> None:
    body = json.dumps(bodies.made(FINAL, bodies.SECOND)).encode()
    gateway.answer(Reply(body=body, truncate=len(body) - 5000))
    facts = ask.picture("--n", 2, family="openai")
    assert len(facts["paths"]) == 1 and any("1 of" in warning for warning in facts["warnings"])


def test_longest_half_is_kept(ask: Asker, gateway: Gateway, kept: Path, reference: Path) -> None:
    """Each attempt brought a part of a paid picture: the longest one is on disk."""
    body, end = body_of("gemini")
    start = end - len(base64.b64encode(FINAL))
    other = json.dumps(answer("gemini", b"\xff\xd8\xff" + FINAL)).encode()  # greater, and shorter
    cuts = [(other, 3000), (body, 9000), (body, 6000)]
    gateway.answer(*(Reply(body=text, truncate=start + n) for text, n in cuts))
    saved = Path(ask.error(GONE, "--reference-image", reference)["saved_at"])
    assert [saved] == list(kept.iterdir())
    assert saved.read_bytes() == FINAL[: 9000 * 3 // 4]
    saved.unlink()
    gateway.answer(Reply(body=body, truncate=end - 4000), Reply(body=body))
    ask.picture("--reference-image", reference)
    assert not saved.exists()  # a whole one supersedes all


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_post_follows_no_redirect(ask: Asker, gateway: Gateway, status: int) -> None:
    """It would become a GET, or take key and prompt elsewhere; a 3xx shows the Location."""
    with Gateway() as other:
        gateway.answer(Reply(status, {"Location": f"{other.url}/chat/completions"}), Reply(status))
        error = ask.error("rejected no False")
        assert f"{other.url}/chat/completions" in error["message"] and error["status"] == status
        ask.error("rejected no False")  # without a Location
        assert other.requests == []
    assert len(gateway.requests) == 2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def talk_success(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(head() + json.dumps(answer("gemini", FINAL)).encode())


PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
CERTIFICATES = {
    "unknown-authority": ("", "127.0.0.1", None),
    "another-host": ("ours", "example.org", None),
    "expired": ("ours", "127.0.0.1", PAST),
    "no-bundle": ("/nonexistent.pem", "127.0.0.1", None),
}


@table("bundle, host, end", CERTIFICATES)
def test_bad_certificate(
    ask: Asker, authority: trustme.CA, reference: Path, bundle: str, host: str, end: Any
) -> None:
    """The key never reaches a server that cannot prove who it is; trying again is pointless."""
    got: list[bytes] = []
    tls = tls_of(authority.issue_cert(host, not_after=end))
    with authority.cert_pem.tempfile() as ours, server(lambda c: got.append(c.recv(9)), tls) as at:
        ask.at(at)
        ask.setenv("REQUESTS_CA_BUNDLE", ours if bundle == "ours" else bundle)
        error = ask.error("unavailable no False", "--reference-image", reference)
    assert ("CA_BUNDLE" if "nonexistent" in bundle else "certificate") in error["message"]
    assert not any(got)


# --- The picture's own link ---


def redirect(place: str) -> Reply:
    return Reply(302, {"Location": place})


EXPIRED = Reply(403, body="<Error><Message>Request has expired</Message></Error>")
LINK_FAULTS = {  # and what is said of it
    "expired": (EXPIRED, "cannot be fetched: the server answered 403"),
    "page": (Reply(body="<html>Sign in</html>"), "leads to cannot be used: it is not a picture"),
    "nothing": (Reply(body=b""), "it is empty"),
    "damaged": (Reply(body=FINAL[:9000]), "image file is truncated"),
    "cut": (Reply(body=FINAL, truncate=9000), "the connection was lost"),
    "reset": (Reply(body=FINAL, drop="body"), "the connection was lost"),
    "silent": (Reply(hang="accept"), "the time limit was reached"),
    "byte-a-second": (Reply(body=FINAL, trickle=(1, 1.0)), "the time limit was reached"),
    "redirects-for-ever": (lambda received: redirect(received.target), "answered 302"),
    "to-a-file": (redirect("file:///etc/passwd"), "it is not an http or https address"),
    "to-an-unknown-host": (redirect("http://no-such-host.invalid/x.png"), "cannot be resolved"),
    "to-nonsense": (redirect("http://[:::"), "address is malformed"),
}


@table("reply, words", LINK_FAULTS)
def test_link_that_fails(
    ask: Asker, gateway: Gateway, reference: Path, reply: Any, words: str
) -> None:
    """A paid image is never lost: its link, query and all, is in the error; none is paid twice."""
    url = f"{gateway.origin}/media/x.jpg?Expires=1&Signature=a%2Bb%3D&k={'v' * 900}"
    gateway.answer(Reply(body=linked("openai", url)))
    gateway.answer_always(reply, path="/media")
    error = ask.error("response yes", "--reference-image", reference, family="openai", timeout=1)
    assert (error["image_url"], words in error["message"]) == (url, True), error["message"]
    call, *fetches = gateway.requests
    assert fetches[0].target == url[len(gateway.origin) :] and len(gateway.calls) == 1
    assert all(gateway.key not in str(fetch.headers) + fetch.target for fetch in fetches)
    if reply is LINK_FAULTS["silent"][0]:  # slow storage, such as 12 s of 30, is not cut short
        assert fetches[1].at - fetches[0].at > 0.5 * generate.FETCH_TIMEOUT_S


def test_fetching_is_free_and_tried_again(ask: Asker, gateway: Gateway) -> None:
    """Up to 3 tries, of storage that is not consistent at once and breaks off."""
    gateway.answer(Reply(body=linked("gemini", f"{gateway.origin}/media/x.png")))
    moved = redirect(f"{gateway.origin}/media//x@2x.png")
    replies = Reply(404), Reply(body=FINAL, truncate=9000), moved, Reply(203, body=FINAL)
    gateway.answer(*replies, path="/media")
    ask.picture()
    assert gateway.requests[4].target == "/media//x@2x.png"


def test_link_is_followed_to_a_relative_place(ask: Asker, gateway: Gateway) -> None:
    """A Location is bytes; most servers that write such ones mean UTF-8."""
    gateway.publish(quote("图.png"), FINAL)
    gateway.answer(Reply(body=linked("gemini", f"{gateway.origin}/media/here.png")))
    gateway.answer(redirect("图.png".encode().decode("latin-1")), path="/media")
    ask.picture()


@table("fault, of", {"missing": (Reply(404), "bad"), "silent": (Reply(hang="accept"), "bad-0")})
def test_some_links_fail(ask: Asker, gateway: Gateway, fault: Reply, of: str) -> None:
    """What can be fetched is saved, even behind a silent one, and every other link is told."""
    bad = [f"{gateway.origin}/media/bad-{number}.png" for number in range(2)]
    good = gateway.publish("good.png", FINAL)
    gateway.answer(Reply(body=linked("openai", *bad, good)), Reply(body=linked("openai", *bad)))
    gateway.answer_always(fault, path=f"/media/{of}")
    facts = ask.picture("--n", 3, family="openai", timeout=1.5)
    assert len(facts["paths"]) == 1 and all(url in str(facts["warnings"]) for url in bad)
    Path("out.png").unlink()
    assert ask.error("response yes", "--n", 2, family="openai", timeout=1)["image_urls"] == bad


def test_link_has_a_time_of_its_own(ask: Asker, gateway: Gateway, monkeypatch: Any) -> None:
    """At least 30 s, whatever the call took: the picture is paid."""
    monkeypatch.setattr(generate, "FETCH_TIMEOUT_S", 30)
    gateway.answer(Reply(body=linked("gemini", gateway.publish("x.png", FINAL))))
    gateway.answer_always(Reply(body=FINAL, delay=1.2), path="/media")
    ask.picture(timeout=1)


# --- Proxies and .netrc ---


def test_proxy_is_the_only_way(ask: Asker, gateway: Gateway) -> None:
    """--proxy serves call, link and --check; its password is sent to it and never shown."""
    ask.setenv("OMNIMAAS_BASE_URL", "http://gateway.invalid/v1")  # the stand-in acts as the proxy
    gateway.publish("x.png", FINAL)
    gateway.answer(Reply(body=linked("gemini", "http://gateway.invalid/media/x.png")))
    proxy = gateway.origin.replace("//", "//user:pa55word@")
    ask.picture("--proxy", proxy)
    outcome = ask.run("--check", "--proxy", proxy)
    paths = ["/v1/chat/completions", "/media/x.png", "/v1/models"]
    targets = [f"http://gateway.invalid{path}" for path in paths]
    assert (outcome.code, [request.target for request in gateway.requests]) == (0, targets)
    login = f"Basic {base64.b64encode(b'user:pa55word').decode()}"
    assert {request.headers["Proxy-Authorization"] for request in gateway.requests} == {login}
    assert gateway.requests[1].headers.get("Authorization") is None
    assert "pa55word" not in outcome.out + outcome.err


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_proxy_sees_nothing_under_tls(ask: Asker, authority: trustme.CA, variable: str) -> None:
    """Neither key nor prompt; and both variables are still honoured."""
    heads: list[bytes] = []
    tls = tls_of(authority.issue_cert("gateway.invalid"))

    def talk(connection: socket.socket) -> None:
        heads.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        talk_success(tls.wrap_socket(connection, server_side=True))  # proxy and gateway in one

    with authority.cert_pem.tempfile() as bundle, server(talk) as origin:
        ask.setenv(variable, bundle)
        ask.at("https://gateway.invalid")
        ask.picture("--proxy", origin)
    (head_,) = heads
    assert head_.startswith(b"CONNECT gateway.invalid:443 HTTP/1.")
    assert b"authorization" not in head_.lower()
