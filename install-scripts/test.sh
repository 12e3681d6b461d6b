#!/usr/bin/env bash
# Sets up what the tests need and runs all of them, against a real Docker engine. What continuous integration runs.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: install-scripts/test.sh [--yes] [-- FILTER...]

Runs, in this order and until the first failure: format, lints, documentation, dependency policy, shell scripts,
the service's unit, then every test. With a FILTER: only the tests whose names contain it.

  --yes    install missing packages without asking (as with CI=true in the environment)

  LIGHTD_DENY=1            install cargo-deny where it is missing (some minutes)
  LIGHTD_ADVISORY_DB=FILE  a tar.zst snapshot of the RustSec advisories, for machines that cannot fetch them
END
}

arguments=("$@")
filter=()
while [ $# -gt 0 ]; do
    case $1 in
    --yes | -y) assume_yes=yes ;;
    --help | -h) usage && exit 0 ;;
    --) shift && filter=("$@") && break ;;
    *) usage >&2 && die "unknown option: $1" "Filters stand after --." ;;
    esac
    shift
done
[ "${CI:-}" != true ] || assume_yes=yes

require_root_or_sudo
drop_sudo "$(realpath -- "${BASH_SOURCE[0]}")" "${arguments[@]}"

scratch=$(mktemp -d)
clean_up() {
    local status=$?
    trap - EXIT
    if [ "$engine_started" = yes ]; then
        [ "$status" = 0 ] || as_root grep -E 'level=(error|fatal)' "$engine_log" | tail -n 10 >&2 || true
        say "Stopping the dockerd that this run started."
        stop_engine "$engine_pidfile" || status=1
    fi
    as_root rm -rf "$scratch"
    if [ "$status" = 0 ]; then
        printf '\nAll is well after %d min %02d s.\n' $((SECONDS / 60)) $((SECONDS % 60))
    else
        printf '\nFAILED in: %s\n' "${current:-setting up}" >&2
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# part NAME COMMAND...
part() {
    current=$1
    step "$1"
    shift
    local begun=$SECONDS
    "$@"
    say "($((SECONDS - begun)) s)"
}

documentation() { RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --document-private-items; }

# The dependency policy. Advisories need their database: a snapshot if there is one, else the network.
dependencies() {
    if ! have cargo-deny && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo-deny" ]; then
        PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    fi
    if ! have cargo-deny; then
        if [ "${LIGHTD_DENY:-}" != 1 ]; then
            say "Left out: cargo-deny is not installed (LIGHTD_DENY=1 installs it)."
            return 0
        fi
        cargo install --locked --root "$scratch/tools" cargo-deny
        PATH=$PATH:$scratch/tools/bin
    fi
    cargo deny --locked check --hide-inclusion-graph licenses bans sources
    local snapshot
    for snapshot in "${LIGHTD_ADVISORY_DB:-}" "$repo"/../advisory-db.tar.zst "$repo"/../*/advisory-db.tar.zst; do
        [ ! -f "$snapshot" ] || break
    done
    if [ -f "$snapshot" ]; then
        # The name that cargo-deny gives the database of this URL.
        mkdir -p "$scratch/advisories"
        tar -C "$scratch" --zstd -xf "$snapshot"
        mv "$scratch/db" "$scratch/advisories/advisory-db-3157b0e258782691"
        sed "s#^\[advisories\]#&\ndb-path = \"$scratch/advisories\"#" deny.toml >"$scratch/deny.toml"
        cargo deny --locked --offline --config "$scratch/deny.toml" check advisories
    elif ! cargo deny --locked fetch db; then
        say "Left out: the advisories, whose database cannot be fetched from here."
    else
        cargo deny --locked check advisories
    fi
}

scripts() { shellcheck -x install-scripts/*.sh install-scripts/demo/*.sh .ci/run; }

unit() {
    if ! have systemd-analyze; then
        say "Left out: there is no systemd-analyze here."
        return 0
    fi
    # Verified as if the program were installed.
    sed 's#^\(ExecStart=\)[^ ]*#\1/bin/true#' systemd/lightd.service >"$scratch/lightd.service"
    systemd-analyze verify --man=no "$scratch/lightd.service"
}

# The tests make bridges, rules and files of other users, so they run as root; the build stays the caller's.
run_tests() {
    if [ "$(id -u)" != 0 ]; then
        local host
        host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
        export "CARGO_TARGET_${host}_RUNNER=sudo env PATH=$PATH HOME=$HOME RUSTC=$(command -v rustc)"
    fi
    local status=0
    cargo test --locked --no-fail-fast -- "${filter[@]}" </dev/null || status=$?
    [ "$(id -u)" = 0 ] || as_root chown -R "$(id -u):$(id -g)" target
    return "$status"
}

cd "$repo"
step "Looking for what is missing"
want_build_tools
want nftables nft
want iproute2 ip
want bzip2 bzip2
want xz-utils xz
want zip zip
want unzip unzip
want p7zip-full 7z
want python3 python3
want zstd zstd
want e2fsprogs mkfs.ext4
want util-linux losetup
want shellcheck shellcheck
# For schemathesis, which pip brings from tests/openapi/requirements.txt into target/.
have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || missing_packages+=(python3-venv)
# For the clients of resumable uploads and of the whole API, which npm brings from their lockfiles.
want nodejs node
want npm npm
want_static_busybox
want_rust lint
want_engine
install_missing
require_rust
for tool in clippy fmt; do
    "$rust_dir/cargo" "$tool" --version >/dev/null 2>&1 || die "cargo $tool is missing." \
        "With rustup: rustup component add clippy rustfmt. Debian: rust-clippy and rustfmt (12: rust-web-clippy, rustfmt-web)."
done

if [ ${#filter[@]} = 0 ]; then
    part "cargo fmt" cargo fmt --check
    part "cargo clippy" cargo clippy --locked --all-targets -- -D warnings
    part "the fuzz targets' door" cargo clippy --locked --lib -- -D warnings --cfg fuzzing
    part "the virtual machine's tests" cargo clippy --locked --lib --profile test -- -D warnings --cfg project_quotas
    part "cargo doc" documentation
    part "cargo deny" dependencies
    part "shellcheck" scripts
    part "systemd-analyze" unit
fi
current="the engine"
step "Looking for Docker"
ensure_engine "$scratch"
say "Docker $(engine GET /version | sed 's/.*"Version":"\([^"]*\)".*/\1/') answers."
part "cargo test" run_tests
