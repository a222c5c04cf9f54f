#!/usr/bin/env bash
# Everything that has to hold, from nothing but Python: bash tests/run.sh
#
# Linters, types and the skill's format, the fast tests on every other Python that is here, then all tests with coverage.
# What they need is installed into tests/.venv* and stays there. The first thing that fails ends the run.

set -eu -o pipefail
cd -P -- "$(dirname -- "$0")/.."
exec </dev/null

unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PYTHONWARNINGS PYTEST_ADDOPTS PIP_USER PIP_TARGET PIP_REQUIRE_VIRTUALENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1
[ -w "${HOME:-}" ] || export UV_CACHE_DIR=$PWD/tests/.venv-cache
bin=tests/.venv/bin
pytest=(-m pytest -q -ra --no-header --numprocesses 2 --dist loadgroup --timeout 300 tests)

step() { # step HEADING COMMAND...
    doing=$1
    printf '\n=== %s ===\n' "$doing"
    "${@:2}"
}
trap '[ $? = 0 ] || printf "tests/run.sh: failed: %s\n" "$doing" >&2' EXIT

pythons() { # "3.N PATH" for each release of CPython from 3.9 on that is here, oldest first; python3 goes before its like
    local candidate candidates=(python3 python3.{9..19} "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.*/bin/python3)
    for candidate in "${candidates[@]}"; do
        "$candidate" -c '
import sys
if sys.version_info >= (3, 9) and sys.version_info[3] == "final" and sys.implementation.name == "cpython":
    print("3.%d %s" % (sys.version_info[1], sys.executable))' 2>/dev/null || true
    done | sort -s -u -t. -k2,2n
}

make_env() { # make_env FOLDER PYTHON REQUIREMENTS: from scratch only when that Python is not the one of the last run
    local env=$1 python=$1/bin/python
    if [ "$("$python" -VV 2>/dev/null)" != "$("$2" -VV)" ]; then
        rm -rf "$env"
        if [ -x $bin/uv ]; then
            $bin/uv venv --quiet --python "$2" "$env"
        elif ! "$2" -m venv "$env"; then
            rm -rf "$env"
            uv venv --quiet --seed --python "$2" "$env" || { echo "Install python3-venv, or uv." >&2 && return 1; }
        fi
    fi
    [ -x $bin/uv ] || $bin/python -m pip install --quiet uv
    # subtle: uv takes seconds where pip takes minutes, but only pip knows a mirror that pip's own settings name
    $bin/uv pip install --quiet --python "$python" --requirement "$3" ||
        $bin/python -m pip --python "$python" install --quiet --requirement "$3"
}

validate() { # the validator wants the folder to be called as the skill is
    local folder
    folder=$(mktemp -d)
    ln -s "$PWD" "$folder/product-shots-image-gen"
    $bin/agentskills validate "$folder/product-shots-image-gen"
    rm -r "$folder"
}

found=$(pythons)
main=${found##*$'\n'} # the newest
doing="Python 3.11 or newer is needed for the tools (the skill itself takes 3.9); found: ${found:-none}"
[[ ${main%% *} =~ ^3\.1[1-9]$ ]]

step "Setting up with Python ${main%% *}" make_env tests/.venv "${main#* }" tests/requirements.txt
step "Setting up LiteLLM" make_env tests/.venv-litellm "${main#* }" tests/requirements-litellm.txt
step "ruff check" $bin/ruff check --config tests/ruff.toml scripts tests
step "ruff format" $bin/ruff format --config tests/ruff.toml --check scripts tests
step "mypy" $bin/mypy --config-file tests/mypy.ini scripts/generate.py
step "shellcheck" $bin/shellcheck scripts/*.sh tests/run.sh .ci/run
step "agentskills" validate
step "vermin" $bin/vermin --quiet --no-tips --violations --target=3.9- scripts/generate.py
while read -r version python <&3; do
    [ "$version $python" != "$main" ] || continue
    step "Setting up with Python $version" make_env "tests/.venv-$version" "$python" tests/requirements-suite.txt
    step "Fast tests, Python $version" "tests/.venv-$version/bin/python" "${pytest[@]}" -m "not slow"
done 3<<<"$found"
printf '\n=== All tests, Python %s, with coverage ===\n' "${main%% *}"
exec $bin/python "${pytest[@]}" --durations 15 --cov --cov-config tests/coverage.ini
