# Sourced by the other scripts: finds or makes a Python environment and puts its python into $PYTHON.
#
# - An environment that is active and has the package installed is used as it is.
# - Otherwise .venv in the repository is used. It is made on first use, and brought up to date when
#   pyproject.toml, constraints.txt or the place of the repository changes; else it starts at once.
#
# Only pip and its index are needed. constraints.txt names the torch version and the index decides
# the build: on PyPI for Linux that is the CUDA build, right for a machine with an NVIDIA GPU. For
# the small CPU build, which some indexes lack, call with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf 'stepvar: %s\n' "$*" >&2; }

# use_environment [EXTRA]: EXTRA is a group of optional dependencies, e.g. dev.
use_environment() {
  local extra=${1:-} venv=$REPO/.venv candidate stamp state
  for candidate in python3 python; do
    if command -v "$candidate" >/dev/null && _has_package "$candidate" "$extra"; then
      PYTHON=$(command -v "$candidate")
      return
    fi
  done
  PYTHON=$venv/bin/python
  stamp=$venv/.stepvar-${extra:-core}
  state=$(_state "$venv")
  if [[ -x $PYTHON && -f $stamp && $(<"$stamp") == "$state" ]]; then
    return
  fi
  if ! "$PYTHON" -c '' 2>/dev/null; then
    candidate=$(_find_python) || { say "needs Python 3.11 or newer on the PATH"; exit 2; }
    say "making an environment in $venv (once)"
    "$candidate" -m venv --clear "$venv" || { say "$candidate cannot make a venv"; exit 2; }
  fi
  say "installing packages (a few minutes at most)"
  rm -f "$venv"/.stepvar-*
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -c "$REPO/constraints.txt" \
    -e "$REPO${extra:+[$extra]}" || { say "pip could not install the packages"; exit 2; }
  printf '%s\n' "$state" >"$venv/.stepvar-core"
  printf '%s\n' "$state" >"$stamp"
}

# Whether an environment has the package; for an extra, also this very repository's and all that
# pyproject.toml asks for.
_has_package() {
  "$1" -I - "$REPO" "$2" 2>/dev/null <<'PY'
import importlib.metadata as metadata, pathlib, sys

repository, extra = pathlib.Path(sys.argv[1]), sys.argv[2]
metadata.version("stepvar")
import stepvar_patch.cli

if extra:
    import tomllib
    from packaging.requirements import Requirement

    if repository not in pathlib.Path(stepvar_patch.cli.__file__).resolve().parents:
        sys.exit(1)
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + project["optional-dependencies"][extra]:
        need = Requirement(line)
        if not need.specifier.contains(metadata.version(need.name), prereleases=True):
            sys.exit(1)
PY
}

_find_python() {
  local name range
  for range in 'v < (3, 14)' 'True'; do
    for name in python3 python3.13 python3.12 python3.11 python; do
      if "$name" -c "import sys, venv, ensurepip
v = sys.version_info; sys.exit(not (v >= (3, 11) and ($range)))" 2>/dev/null; then
        command -v "$name"
        return
      fi
    done
  done
  return 1
}

_state() { { printf '%s\n' "$1"; cat "$REPO/pyproject.toml" "$REPO/constraints.txt"; } | cksum; }
