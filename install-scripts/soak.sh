#!/usr/bin/env bash
# Lets random commands and kills of lightd go on for long; test.sh has a short form of it.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: install-scripts/soak.sh [OPTION]...

Runs containers under random commands while lightd is killed over and over; in the end rows, ports, engine and console
must agree. Needs a running Docker engine and root, as the tests do.

  --seconds N   how long (default: 900)
  --seed N      the commands of an earlier run, which it has printed
END
}

seconds=900
while [ $# -gt 0 ]; do
    case $1 in
    --seconds | --seed)
        case ${2:-} in '' | *[!0-9]*) die "$1 wants a number." ;; esac
        if [ "$1" = --seconds ]; then seconds=$2; else export LIGHTD_SOAK_SEED=$2; fi
        shift
        ;;
    --help | -h) usage && exit 0 ;;
    *) usage >&2 && die "unknown option: $1" ;;
    esac
    shift
done

cd "$repo"
LIGHTD_SOAK_SECONDS=$seconds cargo test --locked --test it -- soak --nocapture
