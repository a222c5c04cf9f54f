"""The library: the names, the argument order and the manners that other Python code relies on."""

from __future__ import annotations

import base64
import builtins
import copy
import inspect
import io
import logging
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import generate
import pictures
import pytest
from gateway import Gateway, Reply
from PIL import Image

GEMINI, GPT = "gemini-3-pro-image-preview", "gpt-image-2"
SIGNATURES = {  # the order that existing callers use, and the defaults
    "generate_image": {
        "prompt": inspect.Parameter.empty,
        "model": GEMINI,
        "aspect_ratio": None,
        "negative_prompt": None,
        "reference_images": (),
        "output_path": None,
    },
    "generate_openai": {
        "prompt": inspect.Parameter.empty,
        "model": inspect.Parameter.empty,
        "size": "1024x1024",
        "n": 1,
        "ref_images": (),
        "api_key": None,
        "base_url": None,
    },
    "generate_gemini": {
        "prompt": inspect.Parameter.empty,
        "model": None,
        "ref_images": (),
        "api_key": None,
        "base_url": None,
    },
}
ERRORS = generate.ImageGenError.__subclasses__()
NAMES = [
    *("load_api_key", "load_base_url", "validate_args", "model_family", "maybe_resize", "compose_prompt"),
    *("handle_http_error", "classify_response_error", "generate_image", "generate_openai", "generate_gemini"),
]


@pytest.fixture
def ref(tmp_path: Path) -> Path:
    path = tmp_path / "ref.png"
    path.write_bytes(pictures.picture(2000, 1000))
    return path


def kind_of(data: bytes) -> str:
    image = Image.open(io.BytesIO(data))
    image.load()
    return str(image.format)


# --- Names and order ---


@pytest.mark.parametrize(("name", "parameters"), SIGNATURES.items(), ids=SIGNATURES)
def test_arguments_keep_the_order_that_callers_use(name: str, parameters: dict[str, Any]) -> None:
    signature = inspect.signature(getattr(generate, name)).parameters
    positional = [each for each in signature.values() if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [each.name for each in positional[: len(parameters)]] == list(parameters)
    for each in positional[: len(parameters)]:
        wanted = parameters[each.name]
        assert each.default == wanted or each.name == "model", each.name
        assert wanted is inspect.Parameter.empty or each.default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", NAMES)
def test_the_specification_s_functions_are_there(name: str) -> None:
    function = getattr(generate, name)
    assert inspect.isfunction(function)
    assert function.__module__ == "generate"
    assert function.__doc__


# --- The three functions ---


def test_generate_image_with_everything_by_position(gateway: Gateway, ref: Path, tmp_path: Path) -> None:
    path = generate.generate_image("a cup", GPT, "16:9", "text", [str(ref)], "out/cup.webp")
    assert type(path) is type(tmp_path)
    assert path == tmp_path / "out" / "cup.webp"
    assert kind_of(path.read_bytes()) == "WEBP"
    assert gateway.calls[0].fields == {"model": GPT, "prompt": "a cup Avoid: text", "n": "1", "size": "1536x864"}
    assert len(gateway.calls[0].files) == 1


def test_generate_image_with_the_prompt_alone(gateway: Gateway, tmp_path: Path) -> None:
    path = generate.generate_image("a cup")
    assert path.is_absolute()
    assert path.parent == tmp_path
    assert kind_of(path.read_bytes()) == "JPEG"
    assert gateway.calls[0].json["model"] == GEMINI


def test_generate_image_takes_the_command_line_s_other_wishes(gateway: Gateway, ref: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.write_bytes(pictures.picture(2000, 1000, "RGBA"))
    path = generate.generate_image(
        "a cup",
        GPT,
        reference_images=[ref],
        output_path=tmp_path / "cup.png",
        size="1024x1536",
        n=2,
        mask=mask,
        params={"quality": "high", "output_compression": 50},
        timeout=30,
        attempts=1,
    )
    assert [path, path.with_name("cup-2.png").exists()] == [tmp_path / "cup.png", True]
    fields = {"size": "1024x1536", "n": "2", "quality": "high", "output_compression": "50"}
    assert gateway.calls[0].fields == {"model": GPT, "prompt": "a cup", **fields}
    assert [part.name for part in gateway.calls[0].files] == ["image[]", "mask"]


def test_generate_openai_by_position(gateway: Gateway, ref: Path) -> None:
    result = generate.generate_openai("a cup", GPT, "1536x1024", 2, [ref], gateway.key, gateway.url)
    assert isinstance(result, generate.Generation)
    assert [Image.open(io.BytesIO(data)).size for data in result.images] == [(1536, 1024)] * 2
    assert len({*result.images}) == 2
    assert gateway.calls[0].fields == {"model": GPT, "prompt": "a cup", "n": "2", "size": "1536x1024"}


def test_generate_gemini_by_position(gateway: Gateway, ref: Path) -> None:
    result = generate.generate_gemini("a cup", GEMINI, [ref], gateway.key, gateway.url)
    assert [kind_of(data) for data in result.images] == ["JPEG"]
    assert len(gateway.calls[0].json["messages"][0]["content"]) == 2


@pytest.mark.parametrize("family", ["openai", "gemini"])
def test_a_generation_unpacks_as_image_and_usage(gateway: Gateway, family: str, tmp_path: Path) -> None:
    function, model = {"openai": (generate.generate_openai, GPT), "gemini": (generate.generate_gemini, GEMINI)}[family]
    result = function("a cup", model)
    image, usage = result
    assert (image, usage) == (result.images[0], result.usage)
    assert isinstance(image, bytes)
    assert kind_of(image) == {"openai": "PNG", "gemini": "JPEG"}[family]
    assert isinstance(usage, dict)
    assert usage["total_tokens"] > 0
    assert list(tmp_path.iterdir()) == [], "these two save nothing"


@pytest.mark.parametrize("family", ["openai", "gemini"])
def test_references_given_to_these_two_are_resized_all_the_same(gateway: Gateway, ref: Path, family: str) -> None:
    if family == "openai":
        generate.generate_openai("a cup", GPT, ref_images=(ref,))
        data = gateway.calls[0].files[0].data
    else:
        generate.generate_gemini("a cup", GEMINI, ref_images=(ref,))
        url = gateway.calls[0].json["messages"][0]["content"][1]["image_url"]["url"]
        data = base64.b64decode(url.partition(",")[2])
    assert data == generate.maybe_resize(ref).data
    assert Image.open(io.BytesIO(data)).size == (1024, 512)


def test_an_answer_without_usage_gives_an_empty_dict(gateway: Gateway) -> None:
    picture = pictures.picture(200, 200, noise=True)
    encoded = base64.b64encode(picture).decode()
    gateway.answer(Reply(body={"data": [{"b64_json": encoded}], "usage": None}))
    image, usage = generate.generate_openai("a cup", GPT)
    assert (image, usage) == (picture, {})


def test_a_key_and_a_url_that_are_given_need_no_configuration(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMNIMAAS_API_KEY", "OMNIMAAS_BASE_URL"):
        monkeypatch.delenv(name)
    generate.generate_openai("a cup", GPT, api_key=gateway.key, base_url=gateway.url + "/")
    generate.generate_gemini("a cup", GEMINI, api_key=gateway.key, base_url=gateway.url)
    generate.generate_image("a cup", api_key=gateway.key, base_url=gateway.url)
    assert [call.headers["Authorization"] for call in gateway.calls] == [f"Bearer {gateway.key}"] * 3


def test_a_key_and_a_url_that_are_given_win_over_the_configuration(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIMAAS_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OMNIMAAS_BASE_URL", "http://127.0.0.1:1/v1")
    generate.generate_openai("a cup", GPT, api_key=gateway.key, base_url=gateway.url)
    assert gateway.calls[0].headers["Authorization"] == f"Bearer {gateway.key}"


# --- Errors ---

CALLS = {  # name: what is called, what the gateway answers, the error's class
    "usage": (lambda: generate.generate_image("a cup", aspect_ratio="5:7"), None, generate.UsageError),
    "usage, prompt": (lambda: generate.generate_gemini(" "), None, generate.UsageError),
    "usage, not text": (lambda: generate.generate_gemini(None), None, generate.UsageError),
    "usage, n": (lambda: generate.generate_openai("a", GPT, n=11), None, generate.UsageError),
    "usage, n of another type": (lambda: generate.generate_openai("a", GPT, n="two"), None, generate.UsageError),
    "usage, n true": (lambda: generate.generate_openai("a", GPT, n=True), None, generate.UsageError),
    "usage, size": (lambda: generate.generate_openai("a", GPT, "7x7"), None, generate.UsageError),
    "usage, family": (lambda: generate.generate_openai("a", GEMINI), None, generate.UsageError),
    "usage, other family": (lambda: generate.generate_gemini("a", GPT), None, generate.UsageError),
    "usage, reference": (lambda: generate.generate_gemini("a", GEMINI, ["none.png"]), None, generate.UsageError),
    "usage, params": (lambda: generate.generate_openai("a", GPT, params={"n": 2}), None, generate.UsageError),
    "config": (lambda: generate.generate_gemini("a", base_url="gateway"), None, generate.ConfigError),
    "config, key": (lambda: generate.generate_gemini("a", api_key="sk a"), None, generate.ConfigError),
    "auth": (lambda: generate.generate_gemini("a"), Reply(401), generate.AuthError),
    "quota": (lambda: generate.generate_gemini("a"), Reply(429), generate.QuotaError),
    "unavailable": (lambda: generate.generate_gemini("a"), Reply(503), generate.UnavailableError),
    "rejected": (lambda: generate.generate_gemini("a"), Reply(400), generate.RejectedError),
    "response": (lambda: generate.generate_gemini("a"), Reply(body={}), generate.ResponseError),
    "response, text": (lambda: generate.generate_gemini("a"), Reply(body="hello"), generate.ResponseError),
}  # fmt: skip


@pytest.mark.parametrize(("call", "answer", "kind"), CALLS.values(), ids=CALLS)
def test_every_failure_is_raised_as_its_class(gateway: Gateway, call: Any, answer: Reply | None, kind: type) -> None:
    """A library that exits takes its caller along."""
    if answer:
        gateway.answer(answer)
    with pytest.raises(generate.ImageGenError) as caught:
        call()
    error = caught.value
    assert type(error) is kind
    assert error.message
    assert error.hint
    assert error.message in str(error)
    assert error.billed in ("yes", "no", "maybe")
    assert gateway.key not in f"{error!s}{error!r}{error.args}{vars(error)}"
    assert len(gateway.requests) == bool(answer)


def test_no_key_is_a_config_error_with_the_message_in_its_hint(clean_environment: None) -> None:
    with pytest.raises(generate.ConfigError) as caught:
        generate.generate_gemini("a cup")
    assert caught.value.hint == generate.ONBOARDING


@pytest.mark.parametrize("name", ["colour", "aspectratio", "out"])
def test_an_unknown_argument_is_a_type_error(gateway: Gateway, name: str) -> None:
    """As with any Python function."""
    for function in (generate.generate_image, generate.generate_openai, generate.generate_gemini):
        with pytest.raises(TypeError) as caught:
            function("a cup", GPT, **{name: "red"})
        assert name in str(caught.value)
    assert gateway.requests == []


def test_output_is_not_taken_for_output_path_and_lost(gateway: Gateway) -> None:
    """On the command line it is called --output."""
    for function in (generate.generate_image, generate.generate_openai, generate.generate_gemini):
        with pytest.raises(TypeError, match="output"):
            function("a cup", GPT, output="red.png")
    assert gateway.requests == []


@pytest.mark.parametrize(("size", "sent"), [({}, "1536x864"), ({"size": None}, "1536x864"), ({"size": "auto"}, "auto")])
def test_a_ratio_wins_over_the_default_size_only(gateway: Gateway, size: dict[str, Any], sent: str) -> None:
    generate.generate_openai("a cup", GPT, aspect_ratio="16:9", **size)
    assert gateway.requests[0].json["size"] == sent


@pytest.mark.parametrize("nothing", [None, (), []])
def test_no_references_may_be_none(gateway: Gateway, tmp_path: Path, nothing: Any) -> None:
    generate.generate_image("a cup", reference_images=nothing, params=None, output_path=tmp_path / "cup.jpeg")
    assert gateway.requests[0].path.endswith("/chat/completions")


@pytest.mark.parametrize("reference", [pictures.picture(40, 30), Image.new("RGB", (40, 30)), 5, b"\xff\0"])
def test_a_reference_that_is_no_path(gateway: Gateway, reference: Any) -> None:
    """Its bytes are not shown: an agent would have to read them."""
    with pytest.raises(generate.UsageError) as caught:
        generate.generate_image("a cup", reference_images=[reference])
    assert len(str(caught.value)) < 1200
    assert gateway.requests == []


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
def test_errors_survive_the_way_back_from_another_process(kind: type, way: str) -> None:
    """A process pool pickles them; an error that cannot be read back hangs or hides the reason."""
    facts = {"status": 418, "retryable": True, "billed": "maybe", "image_url": "http://h/a.png", "saved_at": "/tmp/a"}
    error = kind("It failed.", "Do this.", **facts)
    back = {"pickle": lambda e: pickle.loads(pickle.dumps(e)), "copy": copy.copy, "deepcopy": copy.deepcopy}[way](error)
    assert type(back) is kind
    assert (back.message, back.hint, str(back)) == ("It failed.", "Do this.", str(error))
    assert {name: getattr(back, name) for name in facts} == facts
    assert (back.kind, back.exit_code) == (kind.kind, kind.exit_code)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_picklable_by_name(name: str) -> None:
    function = getattr(generate, name)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("name", NAMES)
def test_annotations_name_what_there_is(name: str) -> None:
    """What makes tools of functions evaluates their types, in the module that they are from."""
    annotations = getattr(generate, name).__annotations__.values()
    names = {word for text in annotations for word in compile(text, name, "eval").co_names}
    assert names and not {word for word in names if not hasattr(generate, word) and not hasattr(builtins, word)}


def test_a_generation_is_picklable(gateway: Gateway) -> None:
    result = generate.generate_openai("a cup", GPT, n=2)
    back = pickle.loads(pickle.dumps(result))
    assert (back.images, back.usage) == (result.images, result.usage)


# --- Manners ---


def test_nothing_is_printed(gateway: Gateway, capfd: pytest.CaptureFixture[str], ref: Path, short_waits: None) -> None:
    gateway.answer(Reply(500))
    generate.generate_image("a cup", reference_images=[ref], n=3)
    with pytest.raises(generate.UsageError):
        generate.generate_image("a cup", "gpt-5")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_process_that_has_not_set_up_logging_sees_nothing(gateway: Gateway, tmp_path: Path) -> None:
    """Python prints warnings of loggers without a handler on its own, unless it is told not to."""
    done = in_a_process("generate.generate_image('a cup', n=3, output_path='cup.jpeg')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "cup.jpeg").exists()


def test_what_happens_is_logged_under_image_gen(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        path = generate.generate_image("a cup", n=2)
    assert {record.name for record in caplog.records} == {"image-gen"}
    levels = [record.levelname for record in caplog.records]
    assert levels.count("WARNING") == 1
    assert "INFO" in levels
    assert str(path) in caplog.text
    assert gateway.key not in caplog.text


def test_the_command_line_leaves_the_logger_as_it_was(gateway: Gateway, run: Any) -> None:
    logger = logging.getLogger("image-gen")
    before = (list(logger.handlers), logger.level, logger.propagate, logger.disabled)
    for argv in (["--prompt", "a cup"], ["--prompt", "a cup", "--quiet"], ["--bad"], ["--list-models"], ["--help"]):
        run(*argv)
        assert (list(logger.handlers), logger.level, logger.propagate, logger.disabled) == before


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(generate.__file__).parent)
    script = f"import sys; sys.path.insert(0, {scripts!r}); import generate\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_importing_does_nothing_but_import(clean_environment: None, tmp_path: Path) -> None:
    """No packages, no output, no threads, no handlers on others' loggers, no signals taken, no files."""
    code = (
        "import logging, signal, threading, os\n"
        "print([name for name in ('requests', 'PIL', 'urllib3', 'ssl', 'http.client') if name in sys.modules])\n"
        "print(threading.active_count(), logging.root.handlers)\n"
        "print(signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN),"  # ignored by a shell's &
        " signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "print([type(handler).__name__ for handler in logging.getLogger('image-gen').handlers])\n"
    )
    done = in_a_process(code)
    assert done.stdout.splitlines() == ["[]", "1 []", "True True", "['NullHandler']"]
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["--help"], 0), (["--list-models"], 0), (["--prompt", "a cup"], 3), (["--bad"], 2), (["--version"], 0)],
    ids=["help", "models", "onboarding", "usage error", "version"],
)
def test_what_needs_no_gateway_imports_no_packages(clean_environment: None, argv: list[str], code: int) -> None:
    """They are the slow part of starting, and may not even be installed yet."""
    done = in_a_process(
        f"code = generate.main({argv!r})\n"
        "print([name for name in ('requests', 'PIL') if name in sys.modules], file=sys.stderr)\n"
        "raise SystemExit(code)"
    )
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_usage_error_imports_no_packages_with_a_key_either(gateway: Gateway) -> None:
    done = in_a_process(
        "print(generate.main(['--prompt', 'a cup', '--aspect-ratio', '5:7']),"
        " [name for name in ('requests', 'PIL') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "2 []"


def test_the_library_does_not_touch_the_caller_s_process(gateway: Gateway) -> None:
    """Signals, warnings and the standard streams are the caller's."""
    code = (
        "import signal, warnings, requests, PIL.Image\n"
        "before = signal.getsignal(2), signal.getsignal(15), list(warnings.filters), sys.stdout.errors\n"
        "generate.generate_gemini('a cup')\n"
        "after = signal.getsignal(2), signal.getsignal(15), list(warnings.filters), sys.stdout.errors\n"
        "print(before[:2] == after[:2], before[2] == after[2], before[3] == after[3])"
    )
    done = in_a_process(code)
    assert (done.stdout, done.stderr) == ("True True True\n", "")


def test_arguments_are_not_changed(gateway: Gateway, ref: Path) -> None:
    references, params = [str(ref)], {"temperature": 0.5}
    generate.generate_image("a cup", reference_images=references, params=params)
    assert (references, params) == ([str(ref)], {"temperature": 0.5})
    assert generate.Args("a").params == {}


# --- Many at once ---


def test_many_threads_at_once_each_get_their_own(gateway: Gateway, tmp_path: Path, ref: Path) -> None:
    """Each prompt's picture under its own name, whatever the order in which they come."""

    def one(number: int) -> Path:
        model, references = (GPT, []) if number % 2 else (GEMINI, [ref])
        return generate.generate_image(f"cup {number}", model, reference_images=references, output_path=f"{number}.png")

    with ThreadPoolExecutor(12) as pool:
        paths = list(pool.map(one, range(12)))
    assert [path.name for path in paths] == [f"{number}.png" for number in range(12)]
    assert len({path.read_bytes() for path in paths}) == len(gateway.calls) == 12
    prompts = [call.json.get("prompt") or call.json["messages"][0]["content"][0]["text"] for call in gateway.calls]
    assert sorted(prompts) == sorted(f"cup {number}" for number in range(12))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_errors_of_threads_stay_apart(gateway: Gateway) -> None:
    """One thread's refusal is not another's."""
    statuses = {"1": 401, "2": 429, "3": 500, "4": 400}

    def reply(received: Any) -> Reply:
        return Reply(statuses[received.json["messages"][0]["content"][0]["text"]])

    def one(prompt: str) -> str:
        with pytest.raises(generate.ImageGenError) as caught:
            generate.generate_gemini(prompt)
        return f"{prompt} {caught.value.kind} {caught.value.status}"

    gateway.answer_always(reply)
    with ThreadPoolExecutor(8) as pool:
        results = set(pool.map(one, list(statuses) * 5))
    assert results == {"1 auth 401", "2 quota 429", "3 unavailable 500", "4 rejected 400"}


def test_threads_do_not_pile_up(gateway: Gateway) -> None:
    before = threading.active_count()
    for _ in range(5):
        generate.generate_gemini("a cup")
    assert threading.active_count() <= before + 6  # the gateway's own, one for each connection


def test_a_process_pool_maps_it(gateway: Gateway, tmp_path: Path) -> None:
    """Results and errors come back whole from spawned processes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(generate.generate_image, f"cup {i}", output_path=f"{i}.jpeg") for i in range(4)]
        failed = pool.submit(generate.generate_image, "a cup", "gpt-5")
        assert [future.result(60) for future in futures] == [tmp_path / f"{i}.jpeg" for i in range(4)]
        error = failed.exception(60)
    assert type(error) is generate.UsageError
    assert "gpt-5" in error.message
    assert len(gateway.calls) == 4
