#!/bin/sh
# Installs what llama.py compares Tandem's CPU engine with: llama.cpp as vendored in the sdist of llama-cpp-python
# (PyPI), built with -march=native, and a Python environment that runs llama.cpp's own checkpoint converter.
#
# Usage: benches/peers/install-llama.sh      (needs python3 with venv, a C++ compiler)
# Installs into $PEERS_DIR, default target/peers. What is there already is kept. About 10 CPU-minutes and 7 GB:
# the converter imports torch, whose wheel on PyPI brings CUDA libraries along.
set -eu

llama_version=0.3.36
root=$(cd "$(dirname "$0")/../.." && pwd)
dir=${PEERS_DIR:-$root/target/peers}
jobs=${PEERS_JOBS:-2}
mkdir -p "$dir"
cd "$dir"

if [ ! -x build-venv/bin/cmake ]; then
    python3 -m venv build-venv
    build-venv/bin/pip install -q uv scikit-build-core cmake ninja
fi
if [ ! -d llama ]; then
    build-venv/bin/pip download -q --no-deps --no-build-isolation --no-binary llama-cpp-python -d sdist "llama-cpp-python==$llama_version"
    tar xzf "sdist/llama_cpp_python-$llama_version.tar.gz"
    mv "llama_cpp_python-$llama_version/vendor/llama.cpp" llama
fi
if [ ! -x llama/build/bin/llama-quantize ]; then
    PATH=$PWD/build-venv/bin:$PATH
    cmake -S llama -B llama/build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_UI=OFF
    cmake --build llama/build --target llama-bench llama-batched-bench llama-quantize -j "$jobs"
fi
if [ ! -x convert-venv/bin/python ]; then
    python3 -m venv convert-venv
fi
if ! convert-venv/bin/python -c 'import torch, transformers, safetensors, gguf' 2>/dev/null; then
    build-venv/bin/uv pip install -q -p convert-venv/bin/python torch==2.11.0 transformers==5.17.0 safetensors \
        'numpy<3' sentencepiece protobuf pyyaml ./llama/gguf-py
fi
echo "llama.cpp of llama-cpp-python $llama_version is in $dir/llama/build/bin"
