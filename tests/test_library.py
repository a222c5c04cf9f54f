"""The library: the names, the argument order and the manners that other Python code relies on."""

from __future__ import annotations

import builtins
import copy
import inspect
import io
import logging
import pickle
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import generate
import pictures
import pytest
from conftest import MODELS, Run, both_families, table
from gateway import Gateway, Received, Reply
from PIL import Image

GEMINI, GPT = MODELS["gemini"], MODELS["openai"]
IMAGE = "prompt model aspect_ratio negative_prompt reference_images output_path"
ORDERS = {  # all positional arguments, and how many of them have no default
    "generate_image": (IMAGE, 1),
    "generate_openai": ("prompt model size n ref_images api_key base_url", 2),
    "generate_gemini": ("prompt model ref_images api_key base_url", 1),
}
OTHERS = """load_api_key load_base_url validate_args model_family maybe_resize compose_prompt
    handle_http_error classify_response_error"""
FACTS = "message hint status retryable billed image_url saved_at kind exit_code"


def facts_of(error: Any) -> list[Any]:
    return [type(error), str(error), *(getattr(error, name) for name in FACTS.split())]


def make(family: str, **options: Any) -> Any:
    """Pictures of this family by its own function."""
    return getattr(generate, f"generate_{family}")("a cup", MODELS[family], **options)


# --- Names and arguments ---


@pytest.mark.parametrize("name", ORDERS)
def test_argument_order(name: str) -> None:
    """'This argument order is the one that existing callers use.'"""
    order, required = ORDERS[name]
    parameters = inspect.signature(getattr(generate, name)).parameters.values()
    placed = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert [each.name for each in placed] == order.split()
    assert [each.default is each.empty for each in placed].count(True) == required


@pytest.mark.parametrize("name", [*ORDERS, *OTHERS.split()])
def test_specified_functions(name: str) -> None:
    """Each is documented, 'picklable by name', and its annotations name what the module has."""
    function = getattr(generate, name)
    assert function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function
    texts = function.__annotations__.values()
    words = {word for text in texts for word in compile(text, name, "eval").co_names}
    assert [w for w in words if not hasattr(generate, w) and not hasattr(builtins, w)] == []


@pytest.mark.parametrize("name", ["colour", "aspectratio", "output"])
@pytest.mark.parametrize("maker", ORDERS)
def test_unknown_argument(gateway: Gateway, maker: str, name: str) -> None:
    """'A misspelt one is Python's own TypeError'; output is what the command line calls it."""
    with pytest.raises(TypeError, match=name):
        getattr(generate, maker)("a cup", GPT, **{name: "red"})
    assert not gateway.requests


def test_generate_image(gateway: Gateway, reference: Path, tmp_path: Path) -> None:
    """By position, and by name what only the command line has otherwise; 'returning the path'."""
    mask = tmp_path / "mask.png"
    mask.write_bytes(pictures.picture(40, 30, "RGBA"))
    params = {"quality": "high"}
    placed = ("a cup", GPT, "16:9", "text", [str(reference)], "out/cup.webp")
    path = generate.generate_image(*placed, n=2, mask=mask, params=params, timeout=30, attempts=1)
    assert type(path) is type(tmp_path)
    assert path == tmp_path / "out" / "cup.webp"
    assert path.with_name("cup-2.webp").exists()
    sent = {"model": GPT, "prompt": "a cup Avoid: text", "n": "2", "size": "1536x864"}
    assert gateway.calls[0].fields == {**sent, "quality": "high"}
    assert [part.name for part in gateway.calls[0].files] == ["image[]", "mask"]
    assert params == {"quality": "high"}, "arguments are the caller's"


@both_families
def test_generation(gateway: Gateway, family: str, tmp_path: Path) -> None:
    """'Generation … unpacks as image, usage', is unsaved, and can travel between processes."""
    made = make(family, ref_images=None, params=None)
    image, usage = made
    assert (image, usage) == (made.images[0], made.usage)
    assert Image.open(io.BytesIO(image)).size == (1024, 1024)
    assert usage["total_tokens"] > 0
    assert list(tmp_path.iterdir()) == []
    back = pickle.loads(pickle.dumps(made))
    assert (back.images, back.usage) == (made.images, made.usage)


def test_references_are_resized(gateway: Gateway, tmp_path: Path) -> None:
    """'References given to the last two are resized all the same.'"""
    path = tmp_path / "large.png"
    path.write_bytes(pictures.picture(2000, 1000))
    make("openai", ref_images=(path,))
    [part] = gateway.calls[0].files
    assert Image.open(io.BytesIO(part.data)).size == (1024, 512)


@pytest.mark.parametrize("configured", ["", "sk-of-somebody-else"])
def test_given_key_and_url(gateway: Gateway, monkeypatch: Any, configured: str) -> None:
    """Key and URL that are given need no configuration, and win over one."""
    monkeypatch.setenv("OMNIMAAS_API_KEY", configured)
    monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:1/v1" if configured else "")
    given = {"api_key": gateway.key, "base_url": gateway.url + "/"}
    make("openai", **given)
    make("gemini", **given)
    generate.generate_image("a cup", **given)
    sent = [call.headers["Authorization"] for call in gateway.calls]
    assert sent == [f"Bearer {gateway.key}"] * 3


# --- Errors ---

FAILURES = {  # which function, its arguments, the status answered (0: nothing is sent), the class
    "no text": ("gemini", {"prompt": None}, 0, generate.UsageError),
    "n as text": ("openai", {"n": "two"}, 0, generate.UsageError),
    "not openai": ("openai", {"model": GEMINI}, 0, generate.UsageError),
    "no file": ("gemini", {"ref_images": ["none.png"]}, 0, generate.UsageError),
    "pixels": ("gemini", {"ref_images": [Image.new("RGB", (99, 99))]}, 0, generate.UsageError),
    "URL": ("gemini", {"base_url": "gateway"}, 0, generate.ConfigError),
    "key": ("gemini", {"api_key": "sk a"}, 0, generate.ConfigError),
    "401": ("gemini", {}, 401, generate.AuthError),
    "503": ("gemini", {}, 503, generate.UnavailableError),
}


@table("family, options, status, kind", FAILURES)
def test_failures(gateway: Gateway, family: str, options: Any, status: int, kind: type) -> None:
    """'Nothing in the library prints or exits: it raises ImageGenError subclasses.'"""
    gateway.answer(Reply(status or 200))
    function = getattr(generate, f"generate_{family}")
    with pytest.raises(generate.ImageGenError) as caught:
        function(**{"prompt": "a cup", "model": MODELS[family], **options})
    error = caught.value
    assert (type(error), error.status) == (kind, status or None)
    assert error.billed == ("maybe" if status == 503 else "no")
    assert error.message and error.hint and error.message in str(error)
    assert len(str(error)) < 1200, "an agent has to read it"
    assert len(gateway.requests) == bool(status)
    assert facts_of(pickle.loads(pickle.dumps(error))) == facts_of(error)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("kind", generate.ImageGenError.__subclasses__())
def test_errors_travel(kind: Any, way: Any) -> None:
    """A process pool pickles them; what cannot be read back hangs, or hides status and bill."""
    given = {"status": 418, "retryable": True, "image_url": "http://h/a.png", "saved_at": "/a.png"}
    error = kind("It failed.", "Do this.", billed="yes", **given)
    assert [getattr(error, name) for name in given] == list(given.values())
    assert facts_of(way(error)) == facts_of(error)


# --- Manners ---


def world() -> list[Any]:
    """What belongs to the caller: signals, warnings, streams, loggers."""
    logger = logging.getLogger("image-gen")
    found = [*logger.handlers, logger.level, logger.propagate, logger.disabled]
    found += [*logging.root.handlers, logging.root.level, *warnings.filters, sys.stdout.errors]
    return [*found, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]


def test_library_is_quiet(gateway: Gateway, capfd: Any, caplog: Any, reference: Path) -> None:
    """It prints nothing and 'logs through logging.getLogger("image-gen")'."""
    caplog.set_level(logging.INFO)
    before = world()
    path = generate.generate_image("a cup", reference_images=[reference], n=3)
    assert world() == before
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records} == {"image-gen"}
    assert {record.levelname for record in caplog.records} == {"INFO", "WARNING"}
    assert str(path) in caplog.text


@pytest.mark.parametrize("argv", ["--prompt x", "--prompt x --quiet", "--bad", "--help"])
def test_command_line_leaves_no_trace(gateway: Gateway, run: Run, argv: str) -> None:
    before = world()
    run(*argv.split())
    assert world() == before


IMPORTED = """
import contextlib, io, logging, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import generate
print(threading.active_count(), logging.root.handlers)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
logging.getLogger("image-gen").warning("nobody has asked for it")
for argv in (["--list-models"], ["--bad"], ["--prompt", "a cup"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = generate.main(argv)
    print(code, end=" ")
print([name for name in ("requests", "PIL", "urllib3", "ssl") if name in sys.modules])
"""


def test_importing(tmp_path: Path) -> None:
    """'Importing has no side effects … and does not import requests or Pillow until needed.'"""
    argv = [sys.executable, "-c", IMPORTED, str(Path(generate.__file__).parent)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["1 []", "True", "0 2 3 []"]
    assert list(tmp_path.iterdir()) == []


# --- Many at once ---


def test_threads_get_their_own(gateway: Gateway, tmp_path: Path) -> None:
    """'Safe to call from many threads': to each its picture or its error."""
    errors = {"3": 401, "6": 429, "9": 500, "12": 400}

    def reply(call: Received) -> Reply:
        prompt = call.json.get("prompt") or call.json["messages"][0]["content"][0]["text"]
        return Reply(errors.get(prompt, 200))

    def one(prompt: str, model: str) -> Any:
        try:
            return generate.generate_image(prompt, model, output_path=f"{prompt}.png").stem
        except generate.ImageGenError as error:
            return error.status

    gateway.answer_always(reply)
    prompts = [str(number) for number in range(1, 13)]
    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(one, prompts, [GPT, GEMINI] * 6))
    assert results == [errors.get(prompt, prompt) for prompt in prompts]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 8
