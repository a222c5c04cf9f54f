"""setup.sh on every machine a newcomer may sit at: it gets the program going, or says the one thing to type.

Each test has a copy of the skill in a folder of its own, with a blank in its name, and a PATH that holds nothing but a
few system tools and the stand-in programs it asks for: no Python, no uv and no package manager of this machine.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import resource
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import SCRIPTS, Outcome, surroundings
from gateway import Gateway

SCRIPT = SCRIPTS / "setup.sh"
TOOLS = ("bash", "sh", "cat", "dirname", "env", "id", "ls", "mkdir", "rm", "sed")
BASE = getattr(sys, "_base_executable", sys.executable)  # the interpreter that this virtual environment was made with
APT = "{0}apt-get update && {0}apt-get install -y python3-venv && bash scripts/setup.sh"
AGAIN = "bash scripts/setup.sh"
NOWHERE = "http://127.0.0.1:9/"  # nothing listens on the discard port

FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_CONFIG")  # the copy is not measured, and runs at its own pace

# What the programs on the PATH may be. BARE is a Python without packages: -S leaves out all of site-packages.
BARE = f'exec {shlex.quote(BASE)} -S "$@"'
FULL = f'exec {shlex.quote(sys.executable)} "$@"'
OLD = f"""[ "$1" = -c ] || exit 1
exec {shlex.quote(BASE)} -S -c 'import sys; sys.version_info = (3, 8, 18, "final", 0)
'"$2" """
NO_VENV = f"""case $1$2 in
    -c*) exec {shlex.quote(BASE)} -S -c 'import sys; sys.modules["ensurepip"] = None
'"$2" ;;
    -mvenv) mkdir -p "$3/bin" && echo 'ensurepip is not available' && exit 1 ;;
esac
exec {shlex.quote(BASE)} -S "$@" """
HALF_VENV = f"""case $1$2 in -mvenv) mkdir -p "$3/bin" && echo 'No space left on device' >&2 && exit 1 ;; esac
{BARE}"""
BROKEN = "echo 'pyenv: python3: command not found' >&2; exit 127"
NEVER = 'echo "$0 must not be run" >&2; exit 99'
AS_ROOT, AS_USER = "echo 0", "echo 1000"


Packages = Mapping[str, "str | None"]  # the environment that leads to them


class Machine:
    """A copy of the skill, and a PATH with these programs: name -> the shell script that it is, or a path to it."""

    def __init__(self, folder: Path) -> None:
        self.skill = folder / "product shots" / "skill"
        self.bin, self.home = folder / "bin", Path(os.environ["HOME"])
        for name in ("scripts/setup.sh", "scripts/generate.py", "tests/gateway.py"):
            target = self.skill / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SCRIPTS.parent / name, target)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def has(self, **programs: str | Path) -> Machine:
        for name, content in programs.items():
            program = self.bin / name.replace("_", "-")
            program.unlink(missing_ok=True)
            if isinstance(content, Path):
                program.symlink_to(content)
            else:
                make_script(program, content)
        return self

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str | None] | None = None,
        path: str = "",
        **options: Any,
    ) -> Outcome:
        changes = {**dict.fromkeys(FOREIGN), "PATH": f"{path}{self.bin}", **(env or {})}
        done = subprocess.run(
            [shutil.which(str(command[0]), path=changes["PATH"]) or command[0], *command[1:]],
            cwd=cwd or self.skill,
            env=surroundings(changes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=240,
            encoding="utf-8",
            errors="replace",
            **options,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def setup(self, **options: Any) -> Outcome:
        return self.run("bash", "scripts/setup.sh", **options)

    def follow(self, outcome: Outcome, **options: Any) -> Outcome:
        """Type what the last line says."""
        return self.run("bash", "-c", last_line(outcome), **options)

    @property
    def venv(self) -> Path:
        return self.skill / ".venv"


def make_script(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)


def last_line(outcome: Outcome) -> str:
    return outcome.err.splitlines()[-1]


def advice(python: str, at: str = "", stand_in: bool = True) -> str:
    """The last line when all is well."""
    gateway, generate = (shlex.quote(at + name) for name in ("tests/gateway.py", "scripts/generate.py"))
    make = f'{python} {generate} --prompt "a red apple on wood" --output apple.jpeg'
    return f"{python} {gateway} -- {make}" if stand_in else make


def prepared(outcome: Outcome) -> None:
    """It ended well, and said so where a person looks, and nothing elsewhere."""
    assert (outcome.code, outcome.out) == (0, ""), outcome.err
    assert re.search(r"^\[setup\] ready: Python 3\.\d+\.\d+ with requests [\d.]+ and Pillow [\d.]+$", outcome.err, re.M)


def make_environment(folder: Path, *options: str) -> Path:
    subprocess.run([BASE, "-m", "venv", *options, str(folder)], check=True, capture_output=True, timeout=120)
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture
def machine(tmp_path: Path, clean_environment: None) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """A package index on this disk, so that one download serves all tests, and what makes pip and uv use it."""
    folder = tmp_path_factory.mktemp("packages")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "requests", "Pillow"]
    done = subprocess.run([*download, "--dest", str(folder)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, f"the packages cannot be downloaded: {done.stderr[-2000:]}"
    found = {"PIP_FIND_LINKS": folder.as_uri(), "UV_FIND_LINKS": str(folder)}
    return {**found, "PIP_NO_INDEX": "1", "UV_NO_INDEX": "1", "PIP_EXTRA_INDEX_URL": None, "PIP_INDEX_URL": None}


@pytest.fixture
def uv() -> Path:
    """The uv of the tests' own environment."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    assert found, "uv is missing: see tests/requirements.txt"
    return Path(found)


def bare(machine: Machine, uv: Path) -> Machine:
    """Nothing but a Python without packages; where this one has no venv module, what Debian then needs: uv."""
    return machine.has(python3=BARE, **({} if importlib.util.find_spec("ensurepip") else {"uv": uv}))


# --- Nothing to do ---


PLACES = {  # of the current folder, and the script as it is called from there
    "in the skill": lambda skill: (skill, "scripts/setup.sh"),
    "in the scripts": lambda skill: (skill / "scripts", "setup.sh"),
    "elsewhere": lambda skill: (skill.parent, skill / "scripts" / "setup.sh"),
    "through a link": lambda skill: (linked(skill).parent, "link/scripts/setup.sh"),
    "through a link, in the skill": lambda skill: (linked(skill), "scripts/setup.sh"),
}


def linked(skill: Path) -> Path:
    link = skill.with_name("link")
    link.symlink_to(skill)
    return link


@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("place", PLACES)
def test_ready_already(machine: Machine, shell: str, place: str) -> None:
    """A second run that reinstalls, asks the network or takes its time; a command that cannot be pasted."""
    machine.has(python3=FULL, apt_get=NEVER, uv=NEVER)
    cwd, script = PLACES[place](machine.skill)
    before = snapshot(machine.skill)
    outcome = machine.run(shell, script, cwd=cwd, env={"PIP_INDEX_URL": NOWHERE})
    prepared(outcome)
    assert snapshot(machine.skill) == before
    assert not list(machine.home.iterdir())

    assert last_line(outcome) == advice("python3", at="" if "in the skill" in place else f"{machine.skill}/")


@pytest.mark.parametrize("place", ["in the skill", "elsewhere"])
def test_the_last_line_runs_as_it_stands(machine: Machine, tmp_path: Path, place: str) -> None:
    """Advice that fails when it is followed."""
    machine.has(python3=FULL)
    cwd = machine.skill if place == "in the skill" else tmp_path
    outcome = machine.follow(machine.run("bash", machine.skill / "scripts" / "setup.sh", cwd=cwd), cwd=cwd)
    assert (outcome.code, outcome.out) == (0, f"{cwd / 'apple.jpeg'}\n")
    assert (cwd / "apple.jpeg").stat().st_size > 10_000


KEYS: dict[str, Callable[[Machine], dict[str, str | None]]] = {
    "variable": lambda machine: {"RENDER_API_KEY": "sk-0123456789abcdef"},
    "file": lambda machine: write_key(machine.home / ".canvasflow_imagegen_api_key"),
}


def write_key(path: Path) -> dict[str, str | None]:
    path.write_text("sk-0123456789abcdef\n")
    return {}


@pytest.mark.parametrize("keep", KEYS)
def test_with_a_key_the_next_command_is_the_real_one(machine: Machine, keep: str) -> None:
    """Being sent to the stand-in although the key is there, and a key on the screen."""
    outcome = machine.has(python3=FULL).setup(env=KEYS[keep](machine))
    prepared(outcome)
    assert last_line(outcome) == advice("python3", stand_in=False)
    assert "sk-0123" not in outcome.err


def test_without_a_key_it_says_how_one_is_given(machine: Machine) -> None:
    outcome = machine.has(python3=FULL).setup()
    assert 'export OMNIMAAS_API_KEY="sk-..."' in outcome.err


def test_ready_within_a_second(machine: Machine) -> None:
    """An installer that agents hesitate to call before each use. In seconds of work, as other tests run beside it."""
    machine.has(python3=FULL)
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        prepared(machine.setup())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(took) < 1, took


def test_a_python_that_only_a_newer_name_leads_to(machine: Machine) -> None:
    """A system whose python3 is too old, with a newer one beside it."""
    outcome = machine.has(python3=OLD, python3_11=NEVER, **{"python3.12": FULL}).setup()
    prepared(outcome)
    assert last_line(outcome) == advice("python3.12")


def test_a_python_that_is_called_python(machine: Machine) -> None:
    outcome = machine.has(python=FULL, python3=BROKEN).setup()
    prepared(outcome)
    assert last_line(outcome) == advice("python")


# --- What cannot be done, and what to type about it ---

HELPLESS = {
    "no venv module, root": ({"python3": NO_VENV, "apt-get": NEVER, "id": AS_ROOT}, "venv module", APT.format("")),
    "no venv module, user": (
        {"python3": NO_VENV, "apt-get": NEVER, "id": AS_USER},
        "python3 with the venv module is missing",
        APT.format("sudo "),
    ),
    "no venv module, no apt": ({"python3": NO_VENV}, "venv module", AGAIN),
    "no Python": ({"apt-get": NEVER, "id": AS_USER}, "python3 with the venv module", APT.format("sudo ")),
    "no Python, no apt": ({}, "no Python 3.9 or newer", AGAIN),
    "an unusable shim": ({"python3": BROKEN}, "no Python 3.9 or newer", AGAIN),
    "too old": ({"python3": OLD, "apt-get": NEVER, "id": AS_USER}, "python3 is Python 3.8.18", AGAIN),
    "two that are too old": (
        {"python3": OLD, "python3.9": OLD},
        "python3 is Python 3.8.18, python3.9 is Python 3.8.18",
        AGAIN,
    ),
    "venv fails half way": ({"python3": HALF_VENV}, "nothing of it is left", "bash scripts/setup.sh"),
}  # fmt: skip


@pytest.mark.parametrize(("programs", "says", "then"), [pytest.param(*row, id=name) for name, row in HELPLESS.items()])
def test_one_command_to_type(machine: Machine, programs: dict[str, str], says: str, then: str) -> None:
    """A riddle from pip or venv in place of the one command that helps; half a .venv that breaks the next run."""
    outcome = machine.has(**programs).setup()
    assert (outcome.code, outcome.out) == (1, "")
    assert says in outcome.err.splitlines()[-2]
    assert outcome.err.splitlines()[-2].startswith("[setup] error: ")
    assert last_line(outcome) == then
    assert not machine.venv.exists()


def test_a_path_in_the_command_is_quoted(machine: Machine, tmp_path: Path) -> None:
    """A pasted command that falls apart at a blank or an apostrophe."""
    quoted = machine.skill.rename(machine.skill.with_name("Ana's skill"))
    outcome = machine.has(python3=HALF_VENV).run("bash", quoted / "scripts" / "setup.sh", cwd=tmp_path)
    assert shlex.split(last_line(outcome)) == ["bash", str(quoted / "scripts" / "setup.sh")]


@pytest.fixture
def read_only(machine: Machine) -> Iterator[None]:
    """The skill's folder without write permission, and the tests' processes without root's licence to ignore that."""
    folders = [folder for folder, _, _ in os.walk(machine.skill)]
    for folder in folders:
        os.chmod(folder, 0o555)
    yield
    for folder in folders:
        os.chmod(folder, stat.S_IRWXU)


def as_a_mortal() -> None:
    """For the child between fork and exec: root loses CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH for good."""
    if os.geteuid() == 0:
        for capability in (1, 2):
            assert ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


@pytest.mark.usefixtures("read_only")
def test_a_read_only_skill(machine: Machine) -> None:
    """A skill that an administrator or a package put where its user cannot write."""
    outcome = machine.has(python3=BARE).setup(preexec_fn=as_a_mortal)
    assert (outcome.code, outcome.out) == (1, "")
    assert f"{machine.skill} is read-only" in outcome.err
    assert last_line(outcome).startswith("python3 -m venv ~/.product-shots-venv && . ~/")
    assert last_line(outcome).endswith(" && bash scripts/setup.sh")
    assert not machine.venv.exists()


@pytest.mark.usefixtures("read_only")
def test_a_read_only_skill_that_is_ready(machine: Machine) -> None:
    prepared(machine.has(python3=FULL).setup(preexec_fn=as_a_mortal))


@pytest.mark.slow
@pytest.mark.usefixtures("read_only")
def test_a_read_only_skill_with_an_environment_elsewhere(machine: Machine, packages: Packages) -> None:
    """The advice for a read-only folder, followed to the picture."""
    machine.has(python3=BARE)
    outcome = machine.setup(preexec_fn=as_a_mortal)
    outcome = machine.follow(outcome, env=packages, preexec_fn=as_a_mortal)
    prepared(outcome)
    active = f"{machine.home / '.product-shots-venv' / 'bin'}:"
    outcome = machine.follow(outcome, cwd=None, path=active, env={"PIP_NO_INDEX": "1"})
    assert (outcome.code, outcome.out) == (0, f"{machine.skill / 'apple.jpeg'}\n")


# --- Installing ---


def test_uv_alone_brings_a_python(machine: Machine, tmp_path: Path) -> None:
    """A machine without any Python, but with uv, which can fetch one."""
    log = shlex.quote(str(tmp_path / "uv.log"))
    make_script(tmp_path / "python", FULL)
    made = f'mkdir -p "$5/bin" && ln -s {shlex.quote(str(tmp_path / "python"))} "$5/bin/python"'
    machine.has(uv=f'echo "$@" >> {log}; case $1 in venv) {made} ;; esac', ln=Path(str(shutil.which("ln"))))
    outcome = machine.setup()
    prepared(outcome)
    commands = (tmp_path / "uv.log").read_text().splitlines()
    assert commands[0] == f"venv --quiet --python 3.13 {machine.venv}"
    assert last_line(outcome) == advice(shlex.quote(str(machine.venv / "bin" / "python")))
    prepared(machine.has(uv=NEVER).setup())


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["venv", "uv"])
def test_from_nothing(machine: Machine, uv: Path, maker: str) -> None:
    """The newcomer's first two minutes on the real network with nothing but python3, and again without network."""
    if maker == "venv":
        bare(machine, uv)
    else:
        machine.has(python3=NO_VENV, uv=uv)
    machine.has(sudo=NEVER, apt_get=NEVER)
    first = machine.setup()
    prepared(first)
    assert last_line(first) == advice("python3")
    assert {path.name for path in machine.home.iterdir()} <= {".cache", ".local"}

    picture = machine.follow(first)
    assert (picture.code, picture.out) == (0, f"{machine.skill / 'apple.jpeg'}\n"), picture.err

    before = snapshot(machine.skill)
    second = machine.setup(env={"PIP_INDEX_URL": NOWHERE, "UV_DEFAULT_INDEX": NOWHERE})
    prepared(second)
    assert "installing" not in second.err
    assert snapshot(machine.skill) == before


@pytest.mark.slow
def test_in_an_active_environment(machine: Machine, uv: Path, packages: Packages, tmp_path: Path) -> None:
    """Packages that land where the caller's own Python does not look."""
    environment = make_environment(tmp_path / "my env")
    active = f"{environment / 'bin'}:"
    outcome = bare(machine, uv).setup(path=active, env=packages)
    prepared(outcome)
    assert not machine.venv.exists()
    assert machine.run("python3", "-c", "import requests, PIL", path=active).code == 0
    assert machine.follow(outcome, path=active).code == 0
    before = snapshot(environment)
    prepared(machine.setup(path=active, env={"PIP_NO_INDEX": "1"}))
    assert snapshot(environment) == before


@pytest.mark.slow
@pytest.mark.parametrize("with_uv", [True, False])
def test_in_an_active_environment_without_pip(
    machine: Machine, uv: Path, packages: Packages, tmp_path: Path, with_uv: bool
) -> None:
    """`uv venv` puts no pip in: uv installs into it, and where uv is gone the skill gets an environment of its own."""
    active = f"{make_environment(tmp_path / 'env', '--without-pip') / 'bin'}:"
    if with_uv:
        machine.has(uv=uv)
    outcome = bare(machine, uv).setup(path=active, env=packages)
    prepared(outcome)
    assert machine.venv.exists() != with_uv
    assert machine.follow(outcome, path=active).code == 0


STALE: dict[str, Callable[[Path], object]] = {
    "its Python is gone": lambda venv: [os.makedirs(venv / "bin"), (venv / "bin" / "python").symlink_to("/gone")],
    "its Python does not start": lambda venv: make_script(venv / "bin" / "python", BROKEN),
    "its Python is too old": lambda venv: make_script(venv / "bin" / "python", OLD),
    "making it was interrupted": lambda venv: make_environment(venv, "--without-pip"),
    "empty": lambda venv: venv.mkdir(),
    "a file": lambda venv: venv.touch(),
    "a dangling link": lambda venv: venv.symlink_to("/gone/venv"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "maker"),
    [(state, "uv") for state in STALE] + [("its Python is gone", "venv"), ("making it was interrupted", "venv")],
)
def test_a_stale_environment_is_mended(machine: Machine, uv: Path, packages: Packages, state: str, maker: str) -> None:
    """A skill that was copied from another machine or left half installed, and cannot be mended by its own script."""
    STALE[state](machine.venv)
    if maker == "venv":
        bare(machine, uv)
    else:
        machine.has(python3=NO_VENV, uv=uv)
    outcome = machine.setup(env=packages)
    prepared(outcome)
    assert machine.follow(outcome).code == 0


@pytest.mark.slow
def test_a_sound_environment_is_kept(machine: Machine, uv: Path, packages: Packages) -> None:
    """What else someone installed into the skill's own environment, thrown away because a package was missing."""
    make_environment(machine.venv)
    (machine.venv / "mine").touch()
    prepared(bare(machine, uv).setup(env=packages))
    assert (machine.venv / "mine").exists()


@pytest.mark.slow
def test_without_network_and_then_with_it(machine: Machine, uv: Path, packages: Packages) -> None:
    """A failed first run that leaves something behind on which the second one trips."""
    nowhere = {**packages, "PIP_FIND_LINKS": None, "UV_FIND_LINKS": None, "UV_OFFLINE": "1"}
    first = bare(machine, uv).setup(env=nowhere)
    assert (first.code, first.out) == (1, "")
    assert "Is there a network?" in first.err
    assert last_line(first) == "bash scripts/setup.sh"
    prepared(machine.follow(first, env=packages))


# --- The script itself ---


def test_it_stays_small_and_starts_at_its_end() -> None:
    lines = SCRIPT.read_text().splitlines()
    assert lines[0] == "#!/bin/sh"
    assert len(lines) < 100
    assert lines[-1] == 'main "$@" >&2'
    assert os.access(SCRIPT, os.X_OK)


def test_half_of_it_does_nothing(machine: Machine) -> None:
    """A download that breaks off in the middle of a command."""
    ran = machine.skill / "ran"
    machine.has(**dict.fromkeys(("python3", "python", "uv", "apt-get", "rm"), f": > {shlex.quote(str(ran))}"))
    lines = SCRIPT.read_text().splitlines(keepends=True)
    for count in range(1, len(lines)):
        (machine.skill / "scripts" / "setup.sh").write_text("".join(lines[:count]))
        machine.setup()
        assert not ran.exists(), lines[count - 1]


# --- generate.py without its packages ---


@pytest.fixture
def sent(machine: Machine, gateway: Gateway) -> Callable[..., tuple[Outcome, list[str]]]:
    """sent(*argv): generate.py in a Python without packages; the outcome, and the prompts that the gateway got."""
    machine.has(python3=BARE)

    def call(*argv: str, **options: Any) -> tuple[Outcome, list[str]]:
        outcome = machine.run("python3", "scripts/generate.py", *argv, **options)
        return outcome, [received.json["messages"][0]["content"][0]["text"] for received in gateway.calls]

    return call


Sent = Callable[..., "tuple[Outcome, list[str]]"]
PROMPT = "two words, a 'quote', a \"double\" one,\n a $HOME and 苹果"


def test_it_goes_on_with_the_skills_own_python(machine: Machine, sent: Sent) -> None:
    """`python3 generate.py` after setup.sh made a .venv that nobody activated."""
    make_script(machine.venv / "bin" / "python", FULL)
    outcome, prompts = sent("--prompt", PROMPT, "--output", "a b.jpeg")
    assert (outcome.code, outcome.out, prompts) == (0, f"{machine.skill / 'a b.jpeg'}\n", [PROMPT])


def test_exit_codes_come_through(machine: Machine, sent: Sent) -> None:
    make_script(machine.venv / "bin" / "python", FULL)
    assert sent("--prompt", " ")[0].code == 2
    assert sent("--prompt", "x", env={"OMNIMAAS_API_KEY": "sk-another-key-0123456789"})[0].code == 4


NO_PACKAGES: dict[str, Callable[[Machine], object]] = {
    "no environment": lambda machine: None,
    "a stale one": lambda machine: STALE["its Python is gone"](machine.venv),
    "one without the packages": lambda machine: make_environment(machine.venv, "--without-pip"),
    "a link to one without the packages": lambda machine: machine.venv.symlink_to(
        make_environment(machine.skill.parent / "elsewhere", "--without-pip")
    ),
}


@pytest.mark.parametrize("state", NO_PACKAGES)
def test_without_packages_it_names_the_installer(machine: Machine, sent: Sent, state: str) -> None:
    """A traceback of ModuleNotFoundError, or a program that starts itself over and over."""
    NO_PACKAGES[state](machine)
    outcome, prompts = sent("--prompt", "x")
    assert (outcome.code, outcome.out, prompts) == (3, "", [])
    assert "requests" in outcome.err
    assert str(machine.skill / "scripts" / "setup.sh") in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("flag", ["--help", "--version", "--list-models"])
def test_what_needs_no_packages_works_without_them(sent: Sent, flag: str) -> None:
    assert sent(flag)[0].code == 0


@pytest.mark.slow
def test_uv_run_needs_no_set_up_at_all(machine: Machine, uv: Path, packages: Packages, gateway: Gateway) -> None:
    """The block at the head of generate.py that says what it needs."""
    environment = {**packages, "UV_PYTHON": BASE, "UV_PYTHON_DOWNLOADS": "never"}
    version = machine.has(uv=uv).run("uv", "run", "scripts/generate.py", "--version", env=environment)
    assert (version.code, version.out.split()[0]) == (0, "generate.py"), version.err
    argv = ("--prompt", PROMPT, "--model", "gpt-image-2", "--output", "apple.png")
    picture = machine.run("uv", "run", "scripts/generate.py", *argv, env=environment)
    assert (picture.code, picture.out) == (0, f"{machine.skill / 'apple.png'}\n"), picture.err
    assert gateway.calls[0].json["prompt"] == PROMPT
