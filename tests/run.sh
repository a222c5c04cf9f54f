#!/usr/bin/env bash
# What has to hold, in three minutes, with nothing but Python:   bash tests/run.sh
# Everything there is, which takes longer and wants more:        bash tests/run.sh --all
#
# It checks style, types, the skill's format, and runs the tests that are not marked long. With
# --all it also runs those that are, with coverage, and the others on every Python that is here.
# What it needs goes into tests/.venv*. The first failure ends it.

set -eu -o pipefail
cd -P -- "$(dirname -- "$0")/.."
exec </dev/null

case "$*" in
    "") all= ;;
    --all) all=yes ;;
    *) echo "usage: bash tests/run.sh [--all]" >&2 && exit 2 ;;
esac

unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONWARNINGS PYTEST_ADDOPTS
unset PIP_USER PIP_TARGET PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1
export DEBIAN_FRONTEND=noninteractive
[ -w "${HOME:-}" ] || export UV_CACHE_DIR=$PWD/tests/.venv-cache
bin=tests/.venv/bin
log=tests/.venv-log # what pytest said

has() { command -v "$1" >/dev/null; }

step() { # step HEADING COMMAND...
    doing=$1
    printf '\n=== %s ===\n' "$doing"
    "${@:2}"
}
trap '[ $? = 0 ] || printf "tests/run.sh: failed: %s\n" "$doing" >&2' EXIT

pythons() { # "3.N PATH" for each CPython from 3.9 on, oldest first; python3 goes before its like
    local candidate
    for candidate in python3 python3.{9..19} \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.*/bin/python3 \
        $(uv python list --only-installed 2>/dev/null | awk '{ print $2 }'); do
        "$candidate" -c '
import sys
kind = (sys.implementation.name, sys.version_info[3])
if sys.version_info >= (3, 9) and kind == ("cpython", "final"):
    print("3.%d %s" % (sys.version_info[1], sys.executable))' 2>/dev/null || true
    done | sort -s -u -t. -k2,2n
}

can_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

choose() { # $version and $python: the newest from 3.11 on that venv or uv can work with; $found: all
    local candidate path
    found=$(pythons) version='' python=''
    while read -r candidate path; do
        [[ $candidate =~ ^3\.1[1-9]$ ]] || continue
        if has uv || can_venv "$path"; then version=$candidate python=$path; fi
    done <<<"$found"
}

find_python() { # Debian leaves venv out of its python3: root gets it here
    choose
    if [ -z "$python" ] && has apt-get && [ "$(id -u)" = 0 ]; then
        echo "Installing what is missing: apt-get update && apt-get install -y python3-venv"
        apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null && choose
    fi
    [ "$python" ] && return
    echo "Python 3.11 with its venv module, or uv, is needed. Found: ${found:-none}" >&2
    return 1
}

make_env() { # make_env FOLDER PYTHON WHAT...: from scratch only when the Python is another one
    local uv
    uv=$(type -P $bin/uv uv | head -n 1) || true
    if [ "$("$1/bin/python" -VV 2>/dev/null)" != "$("$2" -VV)" ]; then
        rm -rf "$1"
        if can_venv "$2"; then
            "$2" -m venv "$1"
        else
            "$uv" venv --quiet --seed --python "$2" "$1"
        fi
    fi
    [ -x $bin/uv ] || $bin/python -m pip install --quiet uv
    # subtle: uv takes seconds where pip takes minutes, but only pip knows the mirrors of its settings
    $bin/uv pip install --quiet --python "$1/bin/python" "${@:3}" ||
        $bin/python -m pip --python "$1/bin/python" install --quiet "${@:3}"
}

validate() { # the validator wants the folder to be called as the skill is
    local folder
    folder=$(mktemp -d)
    ln -s "$PWD" "$folder/product-shots-image-gen"
    $bin/agentskills validate "$folder/product-shots-image-gen"
    rm -r "$folder"
}

run_tests() { # run_tests PYTHON OPTION...
    "$1" -m pytest -q -ra --no-header --numprocesses 2 --timeout 300 "${@:2}" tests | tee -a $log
}

: >$log
step "Finding Python" find_python
step "Setting up with Python $version" make_env tests/.venv "$python" -r tests/requirements.txt
step "ruff check" $bin/ruff check --config tests/ruff.toml scripts tests
step "ruff format" $bin/ruff format --config tests/ruff.toml --check scripts tests
step "mypy" $bin/mypy --config-file tests/mypy.ini scripts/generate.py
step "shellcheck" $bin/shellcheck scripts/*.sh tests/run.sh .ci/run
step "agentskills" validate
step "vermin" $bin/vermin --quiet --no-tips --violations --target=3.9- scripts/generate.py

others=$(grep -vxF "$version $python" <<<"$found") || true
if [ "$all" ]; then
    while read -r candidate path <&3; do
        [ "$path" ] || continue
        env=tests/.venv-$candidate
        step "Setting up with Python $candidate" make_env "$env" "$path" -r tests/requirements.txt
        step "Tests, Python $candidate" run_tests "$env/bin/python" -m "not long"
    done 3<<<"$others"
    step "Setting up LiteLLM" make_env tests/.venv-litellm "$python" 'litellm[proxy]'
    step "Setting up for all tests" make_env tests/.venv "$python" -r tests/requirements-all.txt
    step "All tests, Python $version" run_tests $bin/python --durations 15 \
        --cov --cov-config tests/coverage.ini
else
    step "Tests, Python $version" run_tests $bin/python -m "not long"
fi

step "All is well, after $SECONDS s" true
left_out() { printf 'left out: %s\n' "$@"; }
sed -n 's/^SKIPPED \[[0-9]*\] [^ ]* /left out: /p' $log | sort -u # in the tests' own words
if [ -z "$all" ]; then
    versions=$(cut -d' ' -f1 <<<"$others" | paste -sd' ')
    left_out "the tests that are marked long: bash tests/run.sh --all"
    left_out "coverage: bash tests/run.sh --all"
    left_out "a real proxy, LiteLLM: bash tests/run.sh --all"
    [ -z "$versions" ] || left_out "Python $versions: bash tests/run.sh --all"
elif [[ $found != 3.9\ * ]]; then
    left_out "Python 3.9, the oldest that the skill takes: there is none here"
fi
tail -n 1 $log # pytest's own last line
