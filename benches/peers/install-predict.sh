#!/bin/sh
# Installs AIConfigurator and AISimulate's nightly wheel from PyPI for predict.py, each into a folder of its own under target/peers
# (or $PEERS_DIR). A nightly that is gone is named, and the comparison goes on without it.
set -eu
dir=${PEERS_DIR:-$(dirname "$0")/../../target/peers}
python=${PYTHON:-python3}
install() {
    [ -x "$dir/$1/bin/python" ] || "$python" -m venv "$dir/$1"
    "$dir/$1/bin/pip" install --quiet "$2==$3" && "$dir/$1/bin/pip" show "$2" | grep -i '^version'
}
install predict aiconfigurator 0.12.0
install aisimulate aisimulate "${AISIMULATE_VERSION:-0.13.0.dev202610270000000085}" || echo "aisimulate did not install"
