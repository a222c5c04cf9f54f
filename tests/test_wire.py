"""What goes over the wire: the exact request of each route, and no way around the one that the user chose."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
import trustme
from gateway import CHAT_MODELS, IMAGE_MODELS, Gateway, Received, Reply
from PIL import Image

GEMINI, GPT, GPT_1 = "gemini-3-pro-image-preview", "gpt-image-2", "gpt-image-1"
PROMPT = '一杯茶 "tea"\nwith\tmilk 🍵 \\ é'
HEADERS = {"host", "user-agent", "accept", "accept-encoding", "connection", "content-type", "content-length"}
KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
ROUTES = {  # name: model, references, path
    "text to image, gemini": (GEMINI, [], "/v1/chat/completions"),
    "image to image, gemini": (GEMINI, ["png"], "/v1/chat/completions"),
    "text to image, openai": (GPT, [], "/v1/images/generations"),
    "image to image, openai": (GPT, ["png"], "/v1/images/edits"),
}
each_route = pytest.mark.parametrize(("model", "kinds", "path"), ROUTES.values(), ids=ROUTES)


@pytest.fixture
def refs(tmp_path: Path) -> Callable[..., list[str]]:
    """refs("png", "jpg") writes a small picture of each kind, all different, and gives the flags that name them."""

    def make(*kinds: str) -> list[str]:
        flags = []
        for number, kind in enumerate(kinds):
            path = tmp_path / f"отражение {number}.{kind}"
            path.write_bytes(pictures.picture(300 + number, 200, fmt=KINDS[kind]))
            flags += ["--reference-image", str(path)]
        return flags

    return make


def sent(gateway: Gateway) -> Received:
    """The one request that was made."""
    (received,) = gateway.requests
    return received


def data_of(flags: list[str]) -> list[bytes]:
    return [Path(flag).read_bytes() for flag in flags[1::2]]


def data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


# --- The four routes ---


def test_text_to_image_of_gemini(gateway: Gateway, run: Any) -> None:
    assert run("--prompt", PROMPT).code == 0
    received = sent(gateway)
    assert (received.method, received.target) == ("POST", "/v1/chat/completions")
    assert received.headers["Content-Type"].split(";")[0] == "application/json"
    content = [{"type": "text", "text": PROMPT}]
    assert received.json == {"model": GEMINI, "messages": [{"role": "user", "content": content}]}


def test_image_to_image_of_gemini(gateway: Gateway, run: Any, refs: Any) -> None:
    """Text first, then every reference in the order given: a prompt says "the second picture"."""
    flags = refs("png", "jpg", "webp")
    assert run("--prompt", PROMPT, *flags).code == 0
    received = sent(gateway)
    assert (received.method, received.target) == ("POST", "/v1/chat/completions")
    assert received.headers["Content-Type"].split(";")[0] == "application/json"
    urls = map(data_url, data_of(flags), ("image/png", "image/jpeg", "image/webp"))
    content = [{"type": "text", "text": PROMPT}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
    assert received.json == {"model": GEMINI, "messages": [{"role": "user", "content": content}]}


def test_text_to_image_of_openai(gateway: Gateway, run: Any) -> None:
    assert run("--prompt", PROMPT, "--model", GPT).code == 0
    received = sent(gateway)
    assert (received.method, received.target) == ("POST", "/v1/images/generations")
    assert received.headers["Content-Type"].split(";")[0] == "application/json"
    assert received.json == {"model": GPT, "prompt": PROMPT, "n": 1, "size": "1024x1024"}
    assert type(received.json["n"]) is int


def test_image_to_image_of_openai(gateway: Gateway, run: Any, refs: Any) -> None:
    """Some gateways trust the file name's extension, some the Content-Type, some the order: all three are right."""
    flags = refs("png", "jpg", "webp")
    assert run("--prompt", PROMPT, "--model", GPT, *flags).code == 0
    received = sent(gateway)
    assert (received.method, received.target) == ("POST", "/v1/images/edits")
    assert received.headers.get_content_type() == "multipart/form-data"
    fields = [(part.name, part.data.decode()) for part in received.form if part.filename is None]
    assert sorted(fields) == sorted({"model": GPT, "prompt": PROMPT, "n": "1", "size": "1024x1024"}.items())
    assert [part.name for part in received.form[4:]] == ["image[]"] * 3
    types = ["image/png", "image/jpeg", "image/webp"]
    assert [(part.content_type, part.data) for part in received.files] == list(zip(types, data_of(flags)))
    names = [str(part.filename) for part in received.files]
    assert [name.rpartition(".")[2].replace("jpeg", "jpg") for name in names] == ["png", "jpg", "webp"]
    assert all(name.isascii() and name.isprintable() for name in names)


@each_route
def test_the_key_travels_in_the_authorization_header_only(
    gateway: Gateway, run: Any, refs: Any, model: str, kinds: list[str], path: str
) -> None:
    assert run("--prompt", "a cup", "--model", model, *refs(*kinds)).code == 0
    received = sent(gateway)
    assert received.headers.get_all("Authorization") == [f"Bearer {gateway.key}"]
    others = {name.lower(): value for name, value in received.headers.items() if name != "Authorization"}
    assert gateway.key not in received.target + repr(others)
    assert gateway.key.encode() not in received.body
    assert set(others) <= HEADERS, "nothing else says who or where the user is"


@each_route
def test_text_to_image_and_image_to_image_are_one_request_when_all_is_well(
    gateway: Gateway, run: Any, refs: Any, model: str, kinds: list[str], path: str
) -> None:
    """A second call would be a second bill."""
    assert run("--prompt", "a cup", "--model", model, *refs(*kinds)).code == 0
    assert [received.path for received in gateway.requests] == [path]


@pytest.mark.parametrize("model", [*CHAT_MODELS, *IMAGE_MODELS])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_model_and_number_of_references_contents_a_strict_gateway(
    gateway: Gateway, run: Any, refs: Any, model: str, count: int
) -> None:
    if model == "dall-e-3" and count:
        assert run("--prompt", "a cup", "--model", model, *refs(*["png"] * count)).code == 2
        assert gateway.requests == []
        return
    assert run("--prompt", "a cup", "--model", model, *refs(*["png"] * count)).code == 0
    family = "chat/completions" if model in CHAT_MODELS else "images/edits" if count else "images/generations"
    assert [received.path for received in gateway.calls] == [f"/v1/{family}"]


@pytest.mark.parametrize(
    ("model", "most"), [pytest.param(GEMINI, 9, id="nine for gemini"), pytest.param(GPT, 16, id="sixteen for openai")]
)
def test_as_many_references_as_the_model_takes_keep_their_order(
    gateway: Gateway, run: Any, refs: Any, model: str, most: int
) -> None:
    """They are prepared in parallel, by size and luck in any order."""
    flags = refs(*[("png", "jpg", "webp")[i % 3] for i in range(most)])
    big = Path(flags[1])
    big.write_bytes(pictures.picture(2000, 1500, noise=True))  # takes longest, and stays first
    assert run("--prompt", "a cup", "--model", model, *flags).code == 0
    received = sent(gateway)
    if model == GPT:
        images = [part.data for part in received.files]
    else:
        parts = received.json["messages"][0]["content"][1:]
        images = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]
    assert images[1:] == data_of(flags)[1:]
    assert Image.open(io.BytesIO(images[0])).size == (1024, 768)


def test_one_picture_may_be_given_twice(gateway: Gateway, run: Any, refs: Any) -> None:
    flags = refs("png")
    assert run("--prompt", "a cup", "--model", GPT, *flags, *flags).code == 0
    assert [part.data for part in sent(gateway).files] == data_of(flags) * 2


# --- What flags change ---

FIELDS = {  # name: flags, model, the fields that differ from the bare request
    "ratio, gemini": (["--aspect-ratio", "16:9"], GEMINI, {"prompt": "a cup (aspect ratio: 16:9)"}),
    "ratio, openai": (["--aspect-ratio", "16:9"], GPT, {"size": "1536x864"}),
    "ratio, gpt-image-1": (["--aspect-ratio", "16:9"], GPT_1, {"size": "1536x1024"}),
    "ratio, dall-e-3": (["--aspect-ratio", "16:9"], "dall-e-3", {"size": "1792x1024"}),
    "size": (["--size", "1280x1024"], GPT, {"size": "1280x1024"}),
    "size auto": (["--size", "auto"], GPT, {"size": "auto"}),
    "size and ratio": (["--size", "1024x1536", "--aspect-ratio", "1:1"], GPT, {"size": "1024x1536"}),
    "size for gemini": (["--size", "1024x1536"], GEMINI, {}),
    "n": (["--n", "3"], GPT, {"n": 3}),
    "n for gemini": (["--n", "3"], GEMINI, {}),
    "negative, gemini": (["--negative-prompt", "text, 字"], GEMINI, {"prompt": "a cup Avoid: text, 字"}),
    "negative, openai": (["--negative-prompt", "text, 字"], GPT, {"prompt": "a cup Avoid: text, 字"}),
    "ratio and negative, gemini": (
        ["--negative-prompt", "text", "--aspect-ratio", "4:5"],
        GEMINI,
        {"prompt": "a cup (aspect ratio: 4:5) Avoid: text"},
    ),
    "param, a word": (["--param", "quality=high"], GPT, {"quality": "high"}),
    "param, two words": (["--param", "user=a b"], GPT, {"user": "a b"}),
    "param, a number": (["--param", "output_compression=80"], GPT, {"output_compression": 80}),
    "param, a decimal": (["--param", "temperature=0.5"], GEMINI, {"temperature": 0.5}),
    "param, a list": (["--param", 'modalities=["image", "text"]'], GEMINI, {"modalities": ["image", "text"]}),
    "param, an object": (
        ["--param", 'image_config={"image_size": "2K"}'],
        GEMINI,
        {"image_config": {"image_size": "2K"}},
    ),
    "param, equals signs": (["--param", "user=a=b=c"], GPT, {"user": "a=b=c"}),
    "param, quoted JSON": (["--param", 'user="123"'], GPT, {"user": "123"}),
    "param, null": (["--param", "user=null"], GPT, {"user": None}),
    "param, twice": (["--param", "quality=low", "--param", "quality=high"], GPT, {"quality": "high"}),
    "params": (
        ["--param", "background=transparent", "--param", "output_format=webp"],
        GPT_1,
        {"background": "transparent", "output_format": "webp"},
    ),
}


@pytest.mark.parametrize(("flags", "model", "changes"), FIELDS.values(), ids=FIELDS)
def test_a_flag_changes_its_field_and_no_other(
    gateway: Gateway, run: Any, flags: list[str], model: str, changes: dict[str, Any]
) -> None:
    assert run("--prompt", "a cup", "--model", model, *flags).code == 0
    if model == GEMINI:
        prompt = changes.get("prompt", "a cup")
        message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
        others = {name: value for name, value in changes.items() if name != "prompt"}
        assert gateway.calls[0].json == {"model": model, "messages": [message], **others}
    else:
        bare = {"model": model, "prompt": "a cup", "n": 1, "size": "1024x1024"}
        assert gateway.calls[0].json == {**bare, **changes}


FORM = {
    "n": (["--n", "2"], {"n": "2"}),
    "ratio": (["--aspect-ratio", "9:16"], {"size": "864x1536"}),
    "negative": (["--negative-prompt", "text"], {"prompt": "a cup Avoid: text"}),
    "param, a word": (["--param", "input_fidelity=high"], {"input_fidelity": "high"}),
    "param, a number": (["--param", "output_compression=80"], {"output_compression": "80"}),
    "param, a truth": (["--param", "stream_options=true"], None),
}


@pytest.mark.parametrize(("flags", "changes"), FORM.values(), ids=FORM)
def test_a_flag_changes_its_field_of_a_form(
    gateway: Gateway, run: Any, refs: Any, flags: list[str], changes: dict[str, str] | None
) -> None:
    bare = {"model": GPT, "prompt": "a cup", "n": "1", "size": "1024x1024"}
    outcome = run("--prompt", "a cup", "--model", GPT, *flags, *refs("jpg"))
    if changes is None:  # the stand-in does not know it: what counts is how it is written, as JSON
        assert (outcome.code, sent(gateway).fields["stream_options"]) == (7, "true")
    else:
        assert outcome.code == 0
        assert sent(gateway).fields == {**bare, **changes}
    assert len(sent(gateway).files) == 1


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_param_that_only_python_takes_for_json_is_text(gateway: Gateway, run: Any, text: str) -> None:
    """A body with a bare NaN in it is one that no gateway can read."""
    assert run("--prompt", "a cup", "--model", GPT, "--param", f"user={text}").code == 0
    assert f'"{text}"'.encode() in sent(gateway).body


@pytest.mark.parametrize("size", [(300, 200), (2000, 1000)], ids=["small", "resized with its reference"])
def test_a_mask_goes_along_at_the_size_of_the_first_reference(
    gateway: Gateway, run: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "ref.png").write_bytes(pictures.picture(*size))
    (tmp_path / "second.png").write_bytes(pictures.picture(100, 100))
    mask = pictures.picture(*size, mode="RGBA")
    (tmp_path / "m a s k.png").write_bytes(mask)
    flags = ["--reference-image", "ref.png", "--reference-image", "second.png", "--mask", "m a s k.png"]
    assert run("--prompt", "a cup", "--model", GPT, *flags).code == 0
    first, second, last = sent(gateway).files
    assert [first.name, second.name, last.name] == ["image[]", "image[]", "mask"]
    assert (last.content_type, str(last.filename).rpartition(".")[2]) == ("image/png", "png")
    images = [Image.open(io.BytesIO(part.data)) for part in (first, last)]
    assert images[0].size == images[1].size == (min(size[0], 1024), min(size[1], 512))
    assert pictures.has_hole(last.data)
    assert len(last.data) <= 1_048_576
    assert size[0] > 1024 or last.data == mask


def test_a_mask_follows_its_reference_to_a_smaller_size(
    gateway: Gateway, run: Any, tmp_path: Path, short_waits: None
) -> None:
    """A mask of another size than its picture is refused by every gateway."""
    (tmp_path / "ref.png").write_bytes(pictures.picture(1000, 500))
    (tmp_path / "mask.png").write_bytes(pictures.picture(1000, 500, mode="RGBA"))
    gateway.answer(Reply(524), Reply(524))
    assert run("--prompt", "a cup", "--model", GPT, "--reference-image", "ref.png", "--mask", "mask.png").code == 0
    sizes = [[Image.open(io.BytesIO(part.data)).size for part in call.files] for call in gateway.calls]
    assert sizes == [[(1000, 500)] * 2, [(768, 384)] * 2, [(512, 256)] * 2]


def test_gemini_leaves_a_mask_out_and_says_so(gateway: Gateway, run: Any, refs: Any, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(pictures.picture(300, 200, mode="RGBA"))
    outcome = run("--prompt", "a cup", *refs("png"), "--mask", "mask.png")
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "warning" in line and "mask" in line]
    assert len(sent(gateway).json["messages"][0]["content"]) == 2


@pytest.mark.parametrize(
    ("name", "flags", "path"),
    [
        pytest.param("flux-pro", ["--family", "openai"], "/v1/images/generations", id="told to be openai"),
        pytest.param("flux-pro", ["--family", "gemini"], "/v1/chat/completions", id="told to be gemini"),
        pytest.param("google/gemini-3-pro-image-preview", [], "/v1/chat/completions", id="vendor of gemini"),
        pytest.param("openai/gpt-image-2", [], "/v1/images/generations", id="vendor of openai"),
        pytest.param("gpt-image-9", [], "/v1/images/generations", id="later than the catalogue"),
    ],
)
def test_a_name_outside_the_catalogue_is_sent_as_it_was_typed(
    gateway: Gateway, run: Any, name: str, flags: list[str], path: str
) -> None:
    """What the gateway calls its model is the gateway's business; this one says that it has none of them."""
    outcome = run("--prompt", "a cup", "--model", name, *flags)
    assert (outcome.code, sent(gateway).path, sent(gateway).json["model"]) == (7, path, name)
    assert name in outcome.err


def test_the_prompt_may_be_as_long_as_it_may_in_any_script(gateway: Gateway, run: Any) -> None:
    prompt = "茶🍵" * 2000
    assert run("--prompt", prompt).code == 0
    assert sent(gateway).json["messages"][0]["content"][0]["text"] == prompt


@pytest.mark.parametrize(
    ("base", "path"),
    [("/v1", "/v1/images/generations"), ("/v1/", "/v1/images/generations"), ("", "/images/generations")],
)
def test_the_endpoint_is_put_after_the_base_url(
    gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch, base: str, path: str
) -> None:
    monkeypatch.setenv("OMNIMAAS_BASE_URL", gateway.origin + base)
    run("--prompt", "a cup", "--model", GPT)
    assert sent(gateway).target == path


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_post_follows_no_redirect(gateway: Gateway, run: Any, status: int) -> None:
    """It would become a GET, or take key and prompt elsewhere."""
    with Gateway() as elsewhere:
        gateway.answer(Reply(status, {"Location": f"{elsewhere.url}/images/generations"}, body=""))
        outcome = run("--prompt", "a cup", "--model", GPT)
        assert outcome.code == 7
        assert f"{elsewhere.url}/images/generations" in outcome.err
        assert elsewhere.requests == []
    assert len(gateway.requests) == 1


# --- Proxies, .netrc, certificates ---


class Proxy:
    """A forward proxy on loopback, plain and CONNECT; records the request heads that it was sent."""

    def __enter__(self) -> Proxy:
        self.heads: list[bytes] = []
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.server.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += client.recv(65_536)
            head, _, rest = data.partition(b"\r\n\r\n")
            self.heads.append(head)
            method, target, version = head.split(b"\r\n")[0].split(b" ")
            host = target if method == b"CONNECT" else target.split(b"/")[2]
            name, _, port = host.decode().partition(":")
            with socket.create_connection((name, int(port))) as upstream:
                if method == b"CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = b"/" + target.split(b"/", 3)[3]
                    first = b" ".join((method, path, version))
                    upstream.sendall(b"\r\n".join([first, *head.split(b"\r\n")[1:]]) + b"\r\n\r\n" + rest)
                threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
                pump(client, upstream)


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        yield proxy


@each_route
def test_a_proxy_is_used_when_a_flag_names_it(
    gateway: Gateway, proxy: Proxy, run: Any, refs: Any, model: str, kinds: list[str], path: str
) -> None:
    assert run("--prompt", "a cup", "--model", model, *refs(*kinds), "--proxy", proxy.url).code == 0
    (head,) = proxy.heads
    assert head.startswith(f"POST {gateway.origin}{path} HTTP/1.1\r\n".encode())
    assert len(gateway.calls) == 1


def test_a_proxy_in_capitals_is_watched_too(gateway: Gateway, proxy: Proxy, run: Any) -> None:
    """requests spells it anew; a socket that nobody sees looks like no connection, and a paid call like a free one."""
    assert run("--prompt", "a cup", "--proxy", proxy.url.replace("127.0.0.1", "LOCALHOST")).code == 0
    assert len(proxy.heads) == 1


def test_a_result_is_fetched_through_the_same_proxy_and_without_the_key(
    gateway: Gateway, proxy: Proxy, run: Any
) -> None:
    assert run("--prompt", "a cup", "--model", "dall-e-3", "--proxy", proxy.url).code == 0
    post, get = proxy.heads
    assert post.startswith(b"POST ")
    assert get.startswith(f"GET {gateway.origin}/media/".encode())
    assert b"authorization" not in get.lower()


def test_a_proxy_s_password_is_sent_to_it_and_never_shown(gateway: Gateway, proxy: Proxy, run: Any) -> None:
    address = proxy.url.replace("//", "//user:pa55word@")
    outcome = run("--prompt", "a cup", "--proxy", address, "--json")
    assert outcome.code == 0
    assert base64.b64encode(b"user:pa55word") in proxy.heads[0]
    assert "pa55word" not in outcome.out + outcome.err


def test_a_proxy_that_is_not_there_is_the_reason_given(gateway: Gateway, run: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = run("--prompt", "a cup", "--proxy", f"http://user:pa55word@127.0.0.1:{port}", "--json")
    assert outcome.code == 6
    error = outcome.json["error"]
    assert (error["kind"], error["billed"]) == ("unavailable", "no")
    assert "proxy" in error["message"]
    assert "pa55word" not in outcome.out + outcome.err
    assert gateway.requests == []


def test_the_library_takes_a_proxy_too(gateway: Gateway, proxy: Proxy) -> None:
    image, _ = generate.generate_gemini("a cup", GEMINI, proxy=proxy.url)
    assert len(proxy.heads) == 1
    assert Image.open(io.BytesIO(image)).format == "JPEG"


def test_check_goes_through_the_proxy(gateway: Gateway, proxy: Proxy, run: Any) -> None:
    assert run("--check", "--proxy", proxy.url).code == 0
    assert [head.split(b" ")[:2] for head in proxy.heads] == [[b"GET", f"{gateway.url}/models".encode()]]


@pytest.mark.parametrize("model", [GEMINI, "dall-e-3"], ids=["answer", "answer and result URL"])
@pytest.mark.parametrize("address", ["recording", "http://127.0.0.1:1", "socks5://127.0.0.1:1", "nonsense"])
def test_the_environment_s_proxies_are_ignored(
    gateway: Gateway, proxy: Proxy, cli: Any, address: str, model: str
) -> None:
    """ClashX and the like leave ALL_PROXY=socks5://… behind, and requests fails on it."""
    value = proxy.url if address == "recording" else address
    names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
    outcome = cli("--prompt", "a cup", "--model", model, env=dict.fromkeys(names, value))
    assert outcome.code == 0
    assert len(gateway.calls) == 1
    assert proxy.heads == []


def test_no_proxy_does_not_take_a_flag_s_proxy_away(gateway: Gateway, proxy: Proxy, cli: Any) -> None:
    env = {"no_proxy": "*", "NO_PROXY": "127.0.0.1"}
    assert cli("--prompt", "a cup", "--proxy", proxy.url, env=env).code == 0
    assert len(proxy.heads) == 1


@pytest.mark.parametrize("place", ["home", "variable"])
def test_netrc_is_ignored(gateway: Gateway, cli: Any, tmp_path: Path, place: str) -> None:
    """requests would put the login from there in the key's place."""
    path = Path.home() / ".netrc" if place == "home" else tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login somebody password else\ndefault login anybody password else\n")
    path.chmod(0o600)
    outcome = cli("--prompt", "a cup", "--model", "dall-e-3", env={"NETRC": str(path) if place == "variable" else None})
    assert outcome.code == 0
    post, get = gateway.requests
    assert post.headers.get_all("Authorization") == [f"Bearer {gateway.key}"]
    assert get.headers.get_all("Authorization") is None


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, str]:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return ca, str(path)


@pytest.fixture
def secure(gateway: Gateway, authority: tuple[trustme.CA, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Gateway, str]:
    """The gateway, from now on behind TLS, and the file with the authority that vouches for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority[0].issue_cert("localhost", "127.0.0.1").configure_cert(context)
    gateway._server.socket = context.wrap_socket(gateway._server.socket, server_side=True)
    gateway.origin = gateway.origin.replace("http://", "https://")
    gateway.url = f"{gateway.origin}/v1"
    monkeypatch.setenv("OMNIMAAS_BASE_URL", gateway.url)
    return gateway, authority[1]


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("model", [GEMINI, "dall-e-3"], ids=["answer", "answer and result URL"])
def test_a_company_s_own_authority_is_trusted(
    secure: tuple[Gateway, str], run: Any, monkeypatch: pytest.MonkeyPatch, variable: str, model: str
) -> None:
    """trust_env=False would forget these two as well."""
    gateway, bundle = secure
    monkeypatch.setenv(variable, bundle)
    outcome = run("--prompt", "a cup", "--model", model)
    assert outcome.code == 0
    assert len(gateway.calls) == 1


def test_without_it_the_certificate_is_refused_and_nothing_is_said_to_the_stranger(
    secure: tuple[Gateway, str], run: Any
) -> None:
    gateway, _ = secure
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code == 6
    assert (outcome.json["error"]["kind"], outcome.json["error"]["billed"]) == ("unavailable", "no")
    assert "certificate" in outcome.json["error"]["message"]
    assert "Traceback" not in outcome.err
    assert gateway.requests == []


@pytest.mark.parametrize("fault", ["missing", "empty", "no certificate"])
def test_a_bundle_that_cannot_be_used_is_no_traceback(
    secure: tuple[Gateway, str], run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    gateway, _ = secure
    path = tmp_path / "bundle.pem"
    if fault != "missing":
        path.write_text("" if fault == "empty" else "-----BEGIN CERTIFICATE-----\nnonsense\n")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    outcome = run("--prompt", "a cup", "--json")
    assert outcome.code in (3, 6)
    assert outcome.json["error"]["billed"] == "no"
    assert "Traceback" not in outcome.err
    assert gateway.requests == []


def test_a_proxy_between_sees_neither_key_nor_prompt_under_tls(
    secure: tuple[Gateway, str], proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, bundle = secure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    assert run("--prompt", "a cup", "--proxy", proxy.url).code == 0
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {gateway.origin.partition('//')[2]} HTTP/1.".encode())
    assert b"authorization" not in head.lower()
    assert len(gateway.calls) == 1


def test_the_environment_is_not_changed(gateway: Gateway, run: Any) -> None:
    before = dict(os.environ)
    assert run("--prompt", "a cup").code == 0
    assert dict(os.environ) == before
