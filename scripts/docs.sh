#!/usr/bin/env bash
# Builds the documentation into a site, into a temporary folder if none is given, and fails for a link
# that leads nowhere, a page that the navigation lacks or a docstring that does not fit its function.
# usage: scripts/docs.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
# The generator reads the sources without importing them, so it needs the extra `docs` alone.
"$python" -c 'import tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["docs"], sep="\n")' |
    "$python" -m pip --disable-pip-version-check install --quiet -r /dev/stdin
folder=${1:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --quiet --strict --site-dir "$(realpath "$folder")"
echo "docs: $(find "$folder" -name '*.html' | wc -l) pages built into ${1:-a temporary folder}"
