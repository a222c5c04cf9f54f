"""The library: the names, the argument order and the manners that other Python code relies on."""

from __future__ import annotations

import inspect
import io
import logging
import os
import pickle
import pydoc
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import bodies
import generate
import pictures
import pytest
from conftest import MODELS, Run, both_families, table
from gateway import Gateway, Reply
from PIL import Image

GEMINI, GPT = MODELS["gemini"], MODELS["openai"]
IMAGE = "prompt model aspect_ratio negative_prompt reference_images output_path"
ORDERS = {  # all positional arguments, and how many of them have no default
    "generate": (IMAGE, 1),
    "generate_image": (IMAGE, 1),
    "generate_openai": ("prompt model size n ref_images api_key base_url", 2),
    "generate_gemini": ("prompt model ref_images api_key base_url", 1),
}
OTHERS = """load_api_key load_base_url validate_args model_family maybe_resize compose_prompt
    handle_http_error classify_response_error"""
PUBLIC = {*ORDERS, "Generation", "ImageGenError", "Picture"}
PUBLIC |= {kind.__name__ for kind in generate.ImageGenError.__subclasses__()}


def make(family: str, **options: Any) -> Any:
    return getattr(generate, f"generate_{family}")("a cup", MODELS[family], **options)


# --- Names and arguments ---


@pytest.mark.parametrize("name", ORDERS)
def test_arguments(name: str) -> None:
    """'This argument order is the one that existing callers use. All other arguments are
    keyword-only, typed, with a line each in the docstring.'"""
    order, required = ORDERS[name]
    function = getattr(generate, name)
    parameters = inspect.signature(function).parameters.values()
    placed = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert [each.name for each in placed] == order.split()
    assert [each.default is each.empty for each in placed].count(True) == required
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters)
    assert all(each.annotation not in (each.empty, "Any") for each in parameters)
    described = re.findall(r"(?m)^(\w+)  +\S", inspect.getdoc(function) or "")
    assert described == [each.name for each in parameters]


@pytest.mark.parametrize("name", [*ORDERS, *OTHERS.split()])
def test_specified_functions(name: str) -> None:
    """Each is documented, and 'picklable by name for process pools'."""
    function = getattr(generate, name)
    assert function.__doc__
    assert pickle.loads(pickle.dumps(function)) is function


def test_arguments_are_the_same_everywhere() -> None:
    """'generate: exactly generate_image's parameters'; a name has one type and one default."""
    signatures = [inspect.signature(getattr(generate, name)).parameters for name in ORDERS]
    whole, image, *others = signatures
    assert list(whole.items()) == list(image.items())
    for name, each in (pair for parameters in others for pair in parameters.items()):
        like = whole[name.replace("ref_", "reference_")]
        assert name == "model" or (each.annotation, each.default) == (like.annotation, like.default)


def test_size_wins_over_the_ratio(gateway: Gateway) -> None:
    """'Size and ratio given: the size wins, with a warning' and no second one about the shape."""
    for name in ("generate", "generate_openai"):
        made = getattr(generate, name)("a cup", GPT, size="1024x1024", aspect_ratio="16:9")
        (warning,) = made.warnings
        assert all(word in warning for word in ("size 1024x1024", "aspect_ratio 16:9"))
        assert "--" not in warning
    make("openai", size=None)
    assert [call.json["size"] for call in gateway.calls] == ["1024x1024"] * 3


MISTAKES = {  # function and arguments, and the argument's name in the message
    "n": ("generate_openai", {"n": 11}, "n"),
    "family": ("generate", {"model": "my-model"}, "family"),
    "no text": ("generate", {"prompt": None}, "prompt"),
    "not openai": ("generate_openai", {"model": GEMINI}, "family"),
    "pixels": ("generate_openai", {"ref_images": [Image.new("RGB", (9, 9))]}, "reference image"),
    "mask": ("generate_openai", {"mask": "mask.png"}, "ref_images"),
    "a field": ("generate_openai", {"params": {"image": 1}}, "ref_images"),
    "a field of all": ("generate", {"params": {"image": 1}}, "reference_images"),
    "mask's bytes": ("generate_openai", {"mask": b"", "ref_images": [b""]}, "mask is not a path"),
    "no mapping": ("generate_openai", {"params": "quality=high"}, "params is not a mapping"),
    "no path": ("generate", {"output_path": 3}, "output_path is not a path"),
    "no JSON": ("generate", {"params": {"user": {1}}}, "parameter"),
    "no number": ("generate", {"params": {"seed": float("nan")}}, "parameter"),
}


@table("name, options, argument", MISTAKES)
def test_argument_has_the_name_that_the_caller_knows(
    gateway: Gateway, name: str, options: Any, argument: str
) -> None:
    """'Messages name the flag on the command line and the argument in a library.'"""
    with pytest.raises(generate.UsageError) as caught:
        getattr(generate, name)(**{"prompt": "a cup", "model": GPT, **options})
    assert re.search(rf"(?<![-\w]){argument}\b", str(caught.value))
    assert "--" not in str(caught.value)


# --- What is public ---


def test_public_names() -> None:
    """'`__all__` names what is public', and with it `help`, which opens with what this is for."""
    assert sorted(generate.__all__) == sorted(PUBLIC)
    shown = pydoc.plain(pydoc.render_doc(generate))
    assert "from generate import generate_image" in "\n".join(shown.splitlines()[:20])
    classes = set(re.findall(r"(?m)^    class (\w+)", shown))
    functions = set(re.findall(r"(?m)^    (\w+)\(", shown))
    assert (classes, functions) == (PUBLIC - set(ORDERS), set(ORDERS))
    assert re.findall(r"(?m)^    _[a-z]\w*", shown) == []


CALLER = """\
from pathlib import Path
from typing import Optional
from generate import *
made: Generation = generate("a cup", reference_images=[Path("cup.png"), "cup.jpg", b"bytes"], n=2)
facts: tuple[list[bytes], tuple[int, int], str] = made.images, made.pictures[0].size, made.model
paths: list[Path] = made.paths
originals: list[Optional[Path]] = made.originals
numbers: list[Optional[float]] = [made.cost_cny, made.possible_cost_cny, made.tokens]
numbers += [made.elapsed_s, made.attempts, len(made.warnings[0]), len(made.endpoint)]
path: Path = generate_image("a cup", "gpt-image-2", mask=paths[0], params={"quality": "high"})
image, usage = generate_openai("a cup", "gpt-image-2", None, ref_images=(b"bytes",))
image, usage = generate_gemini("a cup", ref_images=["cup.png"], stream=True, timeout=60)
def told(error: ImageGenError) -> list[object]:
    return [error.exit_code, error.kind, error.hint, error.billed, error.image_urls, error.draft_at]
"""
WRONG = {  # a line too much, and what mypy must say of it
    'generate("a cup", apsect_ratio="1:1")': 'Unexpected keyword argument "apsect_ratio"',
    'generate_openai("a cup", "gpt-image-2", fit="9x9")': 'Unexpected keyword argument "fit"',
    'generate_image("a cup", n="2")': 'Argument "n" to "generate_image" has incompatible type',
    'generate_gemini("a cup", timeout="9")': 'Argument "timeout" to "generate_gemini"',
    "made.cost": '"Generation" has no attribute "cost"',
    "made.paths[0].nam": '"Path" has no attribute "nam"',
    'ImageGenError("No.").hnit': '"ImageGenError" has no attribute "hnit"',
}


def test_a_type_checker_knows_it_all(tmp_path: Path) -> None:
    """mypy objects to these mistakes of a caller, and to nothing else."""
    pytest.importorskip("mypy", reason="mypy needs Python 3.11 here: bash tests/run.sh")
    (tmp_path / "caller.py").write_text(CALLER + "\n".join(WRONG) + "\n")
    options = "--strict --no-site-packages --ignore-missing-imports --follow-imports=silent"
    argv = [sys.executable, "-m", "mypy", *options.split(), "caller.py"]
    env = {**os.environ, "MYPYPATH": str(Path(generate.__file__).parent)}
    found = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    errors = [line for line in found.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(WRONG), found.stdout
    for number, (error, words) in enumerate(zip(errors, WRONG.values()), CALLER.count("\n") + 1):
        assert error.startswith(f"caller.py:{number}: ") and words in error


# --- What they make ---


def test_generate(gateway: Gateway, reference: Path, tmp_path: Path) -> None:
    """By position and by name; its seconds begin with the references, here behind a slow link."""
    gateway.answer(Reply(body=reference.read_bytes(), delay=1), path="/media")
    shots = (pictures.picture(320, 180, noise=True, seed=seed) for seed in range(2))
    gateway.answer(Reply(body=bodies.made(*shots)))
    mask = tmp_path / "mask.png"
    mask.write_bytes(pictures.picture(40, 30, "RGBA"))
    params = {"quality": "high"}
    links = [f"{gateway.origin}/media/cup.png"]
    placed = ("a cup", GPT, "16:9", "text", links, tmp_path / "out" / "cup.webp")
    made = generate.generate(*placed, n=2, mask=mask, params=params, timeout=30, attempts=1)
    assert made.paths == [tmp_path / "out" / name for name in ("cup.webp", "cup-2.webp")]
    assert [path.read_bytes() for path in made.paths] == made.images
    assert (made.originals, made.attempts, made.warnings) == ([None, None], 1, [])
    assert made.cost_cny == pytest.approx(0.7)
    assert made.tokens == made.usage["total_tokens"] and made.possible_cost_cny > made.cost_cny
    assert 1 <= made.elapsed_s < 30
    sent = {"model": GPT, "prompt": "a cup Avoid: text", "n": "2", "size": "1536x864"}
    assert gateway.calls[0].fields == {**sent, "quality": "high"}
    assert [part.name for part in gateway.calls[0].files] == ["image[]", "mask"]
    assert params == {"quality": "high"}


@both_families
def test_generation(gateway: Gateway, family: str, tmp_path: Path) -> None:
    """'Generation … unpacks as image, usage', is unsaved, and can travel between processes."""
    made = make(family, ref_images=None, params=None)
    assert list(tmp_path.iterdir()) == []
    image, usage = made
    assert (image, usage) == (made.images[0], made.usage)
    assert Image.open(io.BytesIO(image)).size == (1024, 1024)
    assert usage["total_tokens"] > 0
    assert "stream" not in gateway.calls[0].json
    back = pickle.loads(pickle.dumps(made))
    assert (back.images, back.usage) == (made.images, made.usage)
    described = set(re.findall(r"(?m)^(\w+)  +\S", inspect.getdoc(made) or ""))
    assert {name for name in ("images", *vars(made)) if name[0] != "_"} == described


@pytest.mark.parametrize("configured", ["", "sk-of-somebody-else"])
def test_given_key_and_url(
    gateway: Gateway, monkeypatch: Any, tmp_path: Path, configured: str
) -> None:
    """Key and URL that are given need no configuration, and win over one."""
    monkeypatch.setenv("OMNIMAAS_API_KEY", configured)
    monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:1/v1" if configured else "")
    given = {"api_key": gateway.key, "base_url": gateway.url + "/"}
    make("openai", **given)
    make("gemini", **given)
    path = generate.generate_image("a cup", output_path="cup.jpeg", **given)
    assert type(path) is type(tmp_path)
    assert path == tmp_path / "cup.jpeg" and path.exists()
    sent = [call.headers["Authorization"] for call in gateway.calls]
    assert sent == [f"Bearer {gateway.key}"] * 3


def test_configured_key_goes_to_a_given_url_with_a_warning(gateway: Gateway) -> None:
    """When key and URL come from different places: a warning that names both."""
    warnings = make("openai", base_url=gateway.url).warnings
    assert warnings == ["the key from OMNIMAAS_API_KEY goes to the gateway from base_url"]


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
