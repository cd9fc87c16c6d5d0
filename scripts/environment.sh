# Sourced by run_pretrain.sh and the Makefile: makes sure that a virtual environment with the package is active.
#
# An active environment is used as it is; otherwise .venv is made beside this repository. The package is installed (again)
# only when it is missing or pyproject.toml has changed since.
# EXTRAS: comma-separated extras to install (default: eval). PYTHON: interpreter that makes the environment.

EXTRAS="${EXTRAS:-eval}"

if [ -z "${VIRTUAL_ENV:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        base=""
        for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
            if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
                base="$candidate"
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "error: Python 3.11 or newer is needed; set PYTHON to such an interpreter" >&2
            exit 1
        fi
        echo "== making a virtual environment in .venv ($("$base" --version))"
        "$base" -m venv .venv
    fi
    VIRTUAL_ENV="$PWD/.venv"
    export VIRTUAL_ENV
    PATH="$VIRTUAL_ENV/bin:$PATH"
    export PATH
fi

stamp="$VIRTUAL_ENV/.prismatic-$(echo "$EXTRAS" | tr ',' '-')"
want="$PWD $(cksum < pyproject.toml)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
    echo "== installing prismatic[$EXTRAS] into $VIRTUAL_ENV (a few minutes the first time)"
    python -m pip install --disable-pip-version-check -e ".[$EXTRAS]"
    echo "$want" > "$stamp"
fi
