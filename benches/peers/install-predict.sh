#!/bin/sh
# Installs AIConfigurator from PyPI for predict.py, into target/peers/predict (or $PEERS_DIR/predict).
set -eu
dir=${PEERS_DIR:-$(dirname "$0")/../../target/peers}/predict
[ -x "$dir/bin/python" ] || python3 -m venv "$dir"
"$dir/bin/pip" install --quiet aiconfigurator==0.12.0
"$dir/bin/pip" show aiconfigurator | grep -i '^version'
