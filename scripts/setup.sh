#!/usr/bin/env bash
# Make .venv with the pinned dependencies; `scripts/setup.sh test` adds what the tests need.
# Sourced by demo, test and check: each of them is all the set-up there is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 RAY_USAGE_STATS_ENABLED=0

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

find_python() {
  local name
  for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 || continue
    "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && { echo "$name"; return; }
  done
  say "Python 3.11 or newer is needed (PYTHON=/path/to/python3.12 picks one)."
  exit 1
}

# Debian's Python comes without venv, MLX on Linux is slow without OpenBLAS and compiles its kernels with g++.
system_packages() {
  [ "$(uname -s)" = Linux ] || return 0
  local wanted=()
  "$1" -c 'import ensurepip, venv' 2>/dev/null || wanted+=(python3-venv)
  "$1" -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null || wanted+=(libopenblas0)
  command -v g++ >/dev/null 2>&1 || wanted+=(g++)
  [ ${#wanted[@]} -gt 0 ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "Installing ${wanted[*]} (apt-get) …"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${wanted[@]}"; } >/dev/null 2>&1 && return 0
    say "apt-get did not manage that; going on without, slower."
  else
    say "For speed, install what is missing and run this again:  sudo apt-get install -y ${wanted[*]}"
  fi
}

make_venv() {
  local extras=$1 python stamp
  python=$(find_python)
  system_packages "$python"
  stamp=$(cat pyproject.toml requirements.lock | cksum | tr ' ' '-')-$extras
  [ -f ".venv/$stamp" ] && return 0
  [ -x .venv/bin/python ] || "$python" -m venv .venv || {
    say "No virtual environment could be made; on Debian or Ubuntu:  sudo apt-get install -y python3-venv"
    exit 1
  }
  say "Installing the pinned packages into .venv (a minute or three) …"
  .venv/bin/python -m pip install -q -c requirements.lock -e ".$extras" 2> >(grep -v "^WARNING" >&2)
  rm -f .venv/*-"$extras"
  touch ".venv/$stamp"
}

make_venv "${1:+[$1]}"
