#!/usr/bin/env bash
# Runs the fuzz targets in tests/fuzz/, each for a while, from the corpus that is kept there.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: install-scripts/fuzz.sh [OPTION]... [TARGET...]

Feeds the unpackers and the path parser with what a fuzzer makes up; all targets if none is named. A finding ends the
run; its input lies in tests/fuzz/artifacts/TARGET/ and is tried again with: install-scripts/fuzz.sh TARGET --input FILE

  --seconds N   how long each target runs (default: 60)
  --input FILE  try this input only
  --keep        add what was found to reach new code to the corpus, and shrink that to what is needed
  --yes         install missing packages and cargo-fuzz without asking

  LIGHTD_FUZZ_SANITIZER=address   watch memory as well (slower; wants a toolchain that can)
END
}

seconds=60
input=
keep=no
targets=()
while [ $# -gt 0 ]; do
    case $1 in
    --seconds | --input)
        [ $# -ge 2 ] || die "$1 wants a value."
        if [ "$1" = --input ]; then input=$(realpath -- "$2"); else seconds=$2; fi
        shift
        ;;
    --keep) keep=yes ;;
    --yes | -y) assume_yes=yes ;;
    --help | -h) usage && exit 0 ;;
    -*) usage >&2 && die "unknown option: $1" ;;
    *) targets+=("$1") ;;
    esac
    shift
done
case $seconds in '' | *[!0-9]*) die "--seconds wants a number." ;; esac
[ -z "$input" ] || [ ${#targets[@]} = 1 ] || die "--input wants one target."

require_root_or_sudo
want_build_tools
want g++ g++
want_rust build
install_missing
require_rust
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if ! have cargo-fuzz; then
    confirm "cargo-fuzz is missing. Install it with cargo?"
    cargo install --locked cargo-fuzz
fi

cd "$repo"
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list --fuzz-dir tests/fuzz)
LIGHTD_FUZZ_FOLDER=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)" lightd-fuzz.XXXXXX)
export LIGHTD_FUZZ_FOLDER
scratch=$(mktemp -d)
trap 'rm -rf "$LIGHTD_FUZZ_FOLDER" "$scratch"' EXIT
# Without a sanitizer a stable compiler will do; with one this lets it.
sanitizer=${LIGHTD_FUZZ_SANITIZER:-none}
[ "$sanitizer" = none ] || export RUSTC_BOOTSTRAP=1
fuzz() { cargo fuzz "$1" --fuzz-dir tests/fuzz --sanitizer "$sanitizer" "${@:2}"; }

for target in "${targets[@]}"; do
    if [ -n "$input" ]; then
        fuzz run "$target" "$input"
        continue
    fi
    step "$target, $seconds s"
    # What the fuzzer finds goes beside the corpus, which only --keep changes.
    mkdir -p "$scratch/$target" "tests/fuzz/corpus/$target"
    fuzz run "$target" "$scratch/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=1024 -max_len=65536 -print_final_stats=1
    if [ "$keep" = yes ]; then
        mkdir "$scratch/kept"
        fuzz run "$target" "$scratch/kept" "$scratch/$target" "tests/fuzz/corpus/$target" -- -merge=1
        rm -rf "tests/fuzz/corpus/$target"
        mv "$scratch/kept" "tests/fuzz/corpus/$target"
    fi
done
say "Nothing was found."
