# shellcheck shell=bash
# What the scripts beside this file share. Sourced, never run.
#
# A script runs as root, or as somebody who may use sudo: then only what needs root is done as root, and
# the build stays the caller's own.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# As Cargo.toml's rust-version.
min_rust=1.95
docker_socket=/var/run/docker.sock
assume_yes=no
# The folder with the cargo that is used; set by ensure_rust.
rust_dir=
# yes once this process has started a Docker daemon; its pid and log stand in the named files.
engine_started=no
engine_pidfile=
engine_log=

# Debian keeps nft, iptables and dockerd where a plain user's PATH does not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }
step() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf '\nerror: %s\n' "$1" >&2
    shift
    local line
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -- "$@"; fi
}

require_root_or_sudo() {
    [ "$(uname -s)" = Linux ] || die "lightd runs on Linux only."
    [ "$(id -u)" != 0 ] || return 0
    have sudo || die "this needs root for packages, Docker and the firewall, and there is no sudo." "Run it as root."
    # Asked now, not after a long build. Not by sudo -v, which asks some for a password who need none.
    sudo -- true || die "this needs root for packages, Docker and the firewall, and sudo refuses $(id -un)." \
        "Run it as root, or as a user who may use sudo (as root: adduser $(id -un) sudo, then log in again)."
}

# Under sudo, in a checkout of the caller's: goes on as the caller, so that nothing there ends up root's.
drop_sudo() {
    local script=$1
    shift
    if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] &&
        [ "$(stat -c %U "$repo")" = "$SUDO_USER" ]; then
        local home
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        exec runuser -u "$SUDO_USER" -- env -u SUDO_USER HOME="$home" "$script" "$@"
    fi
}

# confirm QUESTION: yes with --yes; without a terminal to ask on, says how to go on instead.
confirm() {
    [ "$assume_yes" = no ] || return 0
    [ -t 0 ] || die "$1" "There is no terminal to ask on: run again with --yes to agree."
    local answer
    read -r -p "$1 [y/N] " answer
    case $answer in [yY] | [yY][eE][sS]) ;; *) die "nothing was changed." ;; esac
}

# --- packages ---------------------------------------------------------------------------------------------

missing_packages=()

# want PACKAGE COMMAND...: PACKAGE will be installed unless each COMMAND (a name, or a path to a file) is there.
want() {
    local package=$1 thing
    shift
    for thing in "$@"; do
        case $thing in
        /*) [ -e "$thing" ] && continue ;;
        *) have "$thing" && continue ;;
        esac
        missing_packages+=("$package")
        return 0
    done
}

# An ordinary busybox needs shared libraries, which the images made from it do not have.
want_static_busybox() {
    local busybox
    busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 || missing_packages+=(busybox-static)
}

want_build_tools() {
    want gcc cc gcc
    want libc6-dev /usr/include/stdlib.h
    want ca-certificates /etc/ssl/certs/ca-certificates.crt
    want curl curl
}

want_engine() {
    if ! engine_answers; then
        want docker.io dockerd
        want iptables iptables
    fi
}

version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# rust_in DIR: is there a cargo with a rustc that is new enough? Only then is DIR used.
rust_in() {
    local cargo rustc
    cargo=$("$1/cargo" --version 2>/dev/null) && rustc=$("$1/rustc" --version 2>/dev/null) || return 1
    version_at_least "$(cut -d' ' -f2 <<<"$cargo")" "$min_rust" && version_at_least "$(cut -d' ' -f2 <<<"$rustc")" "$min_rust"
}

find_rust() {
    local candidate
    for candidate in "$(dirname "$(command -v cargo || echo /nowhere/cargo)")" "${CARGO_HOME:-$HOME/.cargo}/bin" /usr/local/bin /usr/bin; do
        if rust_in "$candidate"; then
            rust_dir=$candidate
            PATH=$rust_dir:$PATH
            export PATH
            return 0
        fi
    done
    return 1
}

# rust_package NAME: the version that apt would install, if it is new enough.
rust_package() {
    local version
    version=$(apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && version_at_least "$version" "$min_rust"
}

# want_rust build|lint: Debian's own rustc where it is new enough, else the newer one that its security archive
# has for browsers. For `lint`, also what checks and formats.
want_rust() {
    local purpose=$1
    find_rust && return 0
    have apt-get || return 0
    as_root apt-get update -qq || warn "apt-get update failed; going on with the package lists that are there."
    if rust_package rustc && rust_package cargo; then
        missing_packages+=(rustc cargo)
        [ "$purpose" = build ] || missing_packages+=(rust-clippy rustfmt)
    elif rust_package rustc-web && rust_package cargo-web; then
        missing_packages+=(rustc-web cargo-web)
        [ "$purpose" = build ] || missing_packages+=(rust-web-clippy rustfmt-web)
    fi
}

require_rust() {
    [ -n "$rust_dir" ] || find_rust || die "Rust $min_rust or newer is needed, and neither PATH, ~/.cargo/bin nor apt has it." \
        "With rustup: rustup update stable. Without: https://rustup.rs, then run this again." \
        "On Debian 12 the package is rustc-web, from the security archive (bookworm-security)."
    say "Rust: $("$rust_dir/rustc" --version) in $rust_dir"
}

# Installs what `want` found missing, after asking.
install_missing() {
    [ ${#missing_packages[@]} -gt 0 ] || return 0
    have apt-get || die "missing here: ${missing_packages[*]} (Debian's names)." \
        "This script can install packages on Debian and its relatives only: install them and run it again."
    confirm "This machine lacks: ${missing_packages[*]}. Install them with apt-get?"
    as_root apt-get update -qq || warn "apt-get update failed; going on with the package lists that are there."
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing_packages[@]}" ||
        die "apt-get could not install: ${missing_packages[*]}" "Its own message stands above. Mend that and run this again."
    missing_packages=()
    hash -r
}

# --- the container engine -----------------------------------------------------------------------------------

# engine METHOD PATH [CURL-ARGUMENT...]: one request to the Docker Engine API.
engine() {
    local method=$1 path=$2
    shift 2
    as_root curl -sS --max-time 120 --unix-socket "$docker_socket" -X "$method" "$@" "http://docker$path"
}

engine_answers() {
    have curl && [ -S "$docker_socket" ] && [ "$(engine GET /_ping 2>/dev/null)" = OK ]
}

# ensure_engine FOLDER: Docker answers afterwards. Where no systemd looks after it, dockerd is started in the
# background, with dockerd.pid and dockerd.log in FOLDER.
ensure_engine() {
    engine_pidfile=$1/dockerd.pid
    engine_log=$1/dockerd.log
    engine_answers && return 0
    have dockerd || die "there is no Docker engine: nothing answers at $docker_socket, and dockerd is not installed." \
        "apt-get install docker.io iptables, or Docker's own packages; then run this again."
    if is_running /var/run/docker.pid dockerd; then
        say "Waiting for the dockerd that is there (pid $(read_pid /var/run/docker.pid))"
    elif [ -d /run/systemd/system ] && have systemctl; then
        say "Starting Docker: systemctl start docker"
        as_root systemctl start docker ||
            die "systemd could not start Docker." "Why: systemctl status docker; journalctl -u docker -n 50. Then run this again."
    else
        say "Starting dockerd in the background (log: $engine_log)"
        # shellcheck disable=SC2016 # The inner shell expands these.
        as_root sh -c 'nohup setsid dockerd --pidfile "$1" >>"$2" 2>&1 </dev/null 9>&- &' sh "$engine_pidfile" "$engine_log"
        engine_started=yes
    fi
    local tries
    for tries in $(seq 120); do
        engine_answers && return 0
        if [ "$engine_started" = yes ] && [ "$tries" -gt 10 ] && ! is_running "$engine_pidfile" dockerd; then break; fi
        sleep 0.5
    done
    [ ! -e "$engine_log" ] || as_root tail -n 15 "$engine_log" >&2
    die "the Docker engine does not answer at $docker_socket." \
        "Its last words stand above (or: journalctl -u docker). Often missing: mounted cgroups (mount | grep cgroup)," \
        "the kernel's iptables or overlay modules, or the rights for them (inside a container: run it privileged)."
}

# Stops the dockerd whose pid stands in the file, and no other.
stop_engine() {
    stop_pid "$1" dockerd 30
}

# --- processes ---------------------------------------------------------------------------------------------

read_pid() { as_root cat "$1" 2>/dev/null || true; }

# is_running PIDFILE NAME: is the process of the file alive, and still the program it was? Pids are used again,
# and one that nobody has waited for is dead all the same.
is_running() {
    local pid
    pid=$(read_pid "$1")
    [ -n "$pid" ] &&
        [ "$(awk '$1 == "Name:" { name = $2 } $1 == "State:" && $2 != "Z" { print name }' "/proc/$pid/status" 2>/dev/null)" = "$2" ]
}

# stop_pid PIDFILE NAME SECONDS: asks the process to end and waits for it.
stop_pid() {
    local pidfile=$1 name=$2 tries
    is_running "$pidfile" "$name" || return 0
    # By a shell: a small system has no kill program.
    # shellcheck disable=SC2016 # The inner shell expands this.
    as_root sh -c 'kill -TERM "$1"' sh "$(read_pid "$pidfile")"
    for tries in $(seq $(($3 * 5))); do
        is_running "$pidfile" "$name" || break
        sleep 0.2
    done
    if is_running "$pidfile" "$name"; then
        warn "$name (pid $(read_pid "$pidfile")) has not ended after $3 s."
        return 1
    fi
    as_root rm -f "$pidfile"
}

# True if something listens there.
port_is_taken() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }
