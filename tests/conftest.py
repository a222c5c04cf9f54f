"""What every test gets: a clean environment, a gateway of its own, two ways to run the program."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pictures
import pytest
from gateway import Gateway

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

SETTINGS = [
    f"{prefix}_{end}"
    for prefix in ("OMNIMAAS", "PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN")
    for end in ("API_KEY", "BASE_URL", "LEDGER", "BUDGET_CNY", "PRICES")
]
PROXIES = [f"{scheme}_proxy" for scheme in ("http", "https", "ftp", "all", "no")]
CERTIFICATES = ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"]
OTHERS = ["NETRC", "XDG_STATE_HOME", "PYTHONWARNINGS"]
UNWANTED = [*SETTINGS, *PROXIES, *map(str.upper, PROXIES), *CERTIFICATES, *OTHERS]

MODELS = {"gemini": "gemini-3-pro-image-preview", "openai": "gpt-image-2"}
Run = Callable[..., Any]  # the fixture `run`
both_families = pytest.mark.parametrize("family", MODELS)


def table(names: str, rows: dict[str, Any]) -> pytest.MarkDecorator:
    """One test for each row; the rows' keys are the tests' ids."""
    return pytest.mark.parametrize(names, [pytest.param(*row, id=key) for key, row in rows.items()])


@dataclass(frozen=True)
class Outcome:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @functools.cached_property
    def json(self) -> Any:
        """What --json printed; anything but exactly one JSON value is an error."""
        return json.loads(self.out)


@pytest.fixture(autouse=True)
def clean_environment(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting of the machine reaches the program: an empty home and folder, no variables."""
    for name in UNWANTED:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    # where pictures are kept that have no other place
    temporary = str(tmp_path_factory.mktemp("temporary"))
    monkeypatch.setenv("TMPDIR", temporary)
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kept(clean_environment: None) -> Path:
    """The temporary folder, empty at first, of this process and of those that it starts."""
    return Path(tempfile.gettempdir())


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generate.RETRY_WAITS_S", (0.02, 0.03, 0.04))


@pytest.fixture
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "reference.png"
    path.write_bytes(pictures.picture(40, 30))
    return path


@pytest.fixture
def gateway(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A fresh gateway that the environment leads to."""
    with Gateway() as gateway:
        monkeypatch.setenv("OMNIMAAS_API_KEY", gateway.key)
        monkeypatch.setenv("OMNIMAAS_BASE_URL", gateway.url)
        yield gateway
    assert not gateway.errors


@pytest.fixture
def run(clean_environment: None, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """run(*argv): the program in this process."""
    import generate

    def call(*argv: object) -> Outcome:
        capsys.readouterr()  # what came before is not the program's
        try:
            code = generate.main([str(word) for word in argv])
        except SystemExit as end:  # argparse's way out
            code = end.code
        out, err = capsys.readouterr()
        return Outcome(int(code or 0), out, err)

    return call


def command(argv: tuple[object, ...]) -> list[str]:
    return [sys.executable, str(SCRIPTS / "generate.py"), *(str(word) for word in argv)]


def surroundings(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    """The environment with these changes; None takes a variable away."""
    merged = {**os.environ, **(changes or {})}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.fixture
def cli(clean_environment: None) -> Callable[..., Outcome]:
    """cli(*argv, env=None, stdin=""): a process."""

    def call(
        *argv: object, env: Mapping[str, str | None] | None = None, stdin: str = ""
    ) -> Outcome:
        given: dict[str, Any] = {"input": stdin.encode(), "env": surroundings(env), "timeout": 60}
        done = subprocess.run(command(argv), capture_output=True, check=False, **given)
        out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
        return Outcome(done.returncode, out, err)

    return call


@pytest.fixture
def start(clean_environment: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(*argv, env=None): a process to send signals to.

    It leads a session of its own, as text on pipes; what still runs after the test is killed.
    """
    running: list[subprocess.Popen[str]] = []

    def call(
        *argv: object, env: Mapping[str, str | None] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process: subprocess.Popen[str] = subprocess.Popen(
            command(argv),
            env=surroundings(env),
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            **{**pipes, **options},
        )
        running.append(process)
        return process

    yield call
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()
