#!/bin/sh
# Runs benchmarks/gpu_check.py from the checkout, without an installation: the repository's root is the package
# `flip_ctr`. PYTHON names the interpreter, which must have torch, transformers, accelerate and peft.
#
#   benchmarks/gpu_check.sh --output_dir runs/gpu_check [--inputs_dir FOLDER] [--device cpu --small]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
names=$(mktemp -d)
trap 'rm -rf "$names"' EXIT
ln -s "$root" "$names/flip_ctr"
ln -s "$root/flip_ctr_command" "$names/flip_ctr_command"
PYTHONPATH="$names${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" "$names/flip_ctr/benchmarks/gpu_check.py" "$@"
