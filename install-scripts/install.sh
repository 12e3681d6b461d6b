#!/usr/bin/env bash
# Installs a built lightd as a service of this machine, or removes it. May be run again: to update, or to mend.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: install-scripts/install.sh [OPTION]...

Installs the program, its systemd unit, a configuration with secrets of its own and a user that servers run as.
What is there already is kept, but for the program and the unit.

  --binary FILE  the program (default: target/release/lightd)
  --no-start     install only; neither enable nor start the service
  --dry-run      print what would be done
  --uninstall    stop the service, remove program and unit; servers, data and configuration stay
  --purge        as --uninstall, and remove the data, the configuration and the user; refused while servers exist
END
}

program=/usr/local/bin/lightd
unit=/etc/systemd/system/lightd.service
config=/etc/lightd/config.json
data=/var/lib/lightd
# Containers run as this user: an account of its own, so that no person or service ever gets its number.
user=lightd-server

mode=install
dry_run=no
start=yes
binary=$repo/target/release/lightd
arguments=("$@")
while [ $# -gt 0 ]; do
    case $1 in
    --binary)
        [ $# -ge 2 ] || die "--binary wants a file."
        binary=$2
        shift
        ;;
    --no-start) start=no ;;
    --dry-run) dry_run=yes ;;
    --uninstall) mode=uninstall ;;
    --purge) mode=purge ;;
    --help | -h) usage && exit 0 ;;
    *) usage >&2 && die "unknown option: $1" ;;
    esac
    shift
done

# Does a thing, or says that it would.
run() {
    if [ "$dry_run" = yes ]; then
        printf 'would run:'
        printf ' %q' "$@"
        printf '\n'
    else
        "$@"
    fi
}

has_systemd() { [ -d /run/systemd/system ] && have systemctl; }

# put MODE FROM TO: replaces the file in one step, so that a running program is not written to.
put() {
    if cmp -s "$2" "$3" && [ "$(stat -c %a "$3")" = "${1#0}" ]; then
        say "$3 is up to date."
        return 0
    fi
    say "$3"
    run install -D -m "$1" "$2" "$3.new"
    run mv "$3.new" "$3"
    changed=yes
}

make_user() {
    if getent passwd "$user" >/dev/null; then
        say "The user $user is there already."
    else
        say "A user for the servers: $user"
        # useradd takes the first free number of the system's range.
        run useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
    fi
}

make_config() {
    run install -d -m 0700 "$(dirname "$config")" "$data"
    if [ -e "$config" ]; then
        say "$config is kept."
        return 0
    fi
    say "$config"
    local ids
    ids=$(getent passwd "$user" | cut -d: -f3,4) || true
    if [ "$dry_run" = yes ]; then
        say "would write $config: the example, with docker.user ${ids:-as the new user has it} and random secrets"
        return 0
    fi
    (umask 077 && sed "s/\"988:988\"/\"$ids\"/" "$repo/config.example.json" >"$config.new")
    grep -q "\"$ids\"" "$config.new" || die "config.example.json has no docker.user to set."
    "$binary" --config "$config.new" --token reset >/dev/null
    "$binary" --config "$config.new" admin-key reset >/dev/null
    mv "$config.new" "$config"
}

install_all() {
    [ -x "$binary" ] || die "there is no program at $binary." "Build it: install-scripts/quickstart.sh --build-only, or cargo build --locked --release"
    local said
    said=$("$binary" --version) || die "$binary does not run here."
    say "Installing $said"
    have nft || warn "nft is missing: lightd starts no container without its firewall. apt-get install nftables"
    engine_answers || warn "Docker does not answer at $docker_socket; lightd will wait for it. apt-get install docker.io iptables"
    changed=no
    make_user
    make_config
    put 0755 "$binary" "$program"
    put 0644 "$repo/systemd/lightd.service" "$unit"
    if [ "$dry_run" = no ]; then "$program" --config "$config" check-config >/dev/null || die "$config is not valid." "Its mistakes stand above."; fi
    if ! has_systemd; then
        say "There is no systemd here. Start it by: ${SUDO_USER:+sudo }$program --config $config"
        return 0
    fi
    run systemctl daemon-reload
    [ "$start" = yes ] || return 0
    run systemctl enable --quiet lightd
    if [ "$changed" = yes ]; then
        run systemctl restart lightd || did_not_start
    else
        run systemctl start lightd || did_not_start
    fi
    [ "$dry_run" = yes ] || say "lightd runs. Its token: ${SUDO_USER:+sudo }$program --config $config --token what"
}

did_not_start() {
    journalctl --unit lightd --lines 5 --no-pager --output cat >&2 || true
    die "lightd did not start." "Its last words stand above; more: journalctl -u lightd -n 50" \
        "If the port is taken by the demo: install-scripts/quickstart.sh --stop, then run this again."
}

# servers FILTERS: the names of the containers on this lightd's network, and of no other lightd's.
servers() {
    engine_answers || return 0
    engine GET '/containers/json?all=true' -G --data-urlencode "filters={\"network\": [\"$bridge\"]$1}" |
        grep -o '"/lightd-[^"]*"' | tr -d '"/' | sort -u || true
}

uninstall() {
    local left bridge running
    bridge=$(sed -n 's/.*"bridge": *"\([^"]*\)".*/\1/p' "$config" 2>/dev/null) || true
    bridge=${bridge:-lightd0}
    left=$(servers '')
    running=$(servers ', "status": ["running", "paused"]')
    if [ "$mode" = purge ] && [ -n "$left" ]; then
        # shellcheck disable=SC2086 # One name a line; on one line here.
        die "there are still servers:" $left "Delete them through the API, or by docker rm -f, and run this again."
    fi
    if has_systemd && [ -e "$unit" ]; then run systemctl disable --quiet --now lightd; fi
    run rm -f "$unit" "$program"
    ! has_systemd || run systemctl daemon-reload
    if [ "$mode" = purge ]; then
        run rm -rf "$data" "$(dirname "$config")"
        ! getent passwd "$user" >/dev/null || run userdel "$user"
        if engine_answers; then run engine DELETE "/networks/$bridge" -o /dev/null; fi
        local family
        for family in inet bridge; do
            ! nft list table "$family" "$bridge" >/dev/null 2>&1 || run nft delete table "$family" "$bridge"
        done
        say "lightd is gone."
        return 0
    fi
    say "lightd is uninstalled. Kept: $data, $config, the user $user (--purge removes them)."
    # shellcheck disable=SC2086
    [ -z "$running" ] || say "Servers that go on, unwatched:" $running
}

[ "$(id -u)" = 0 ] || [ "$dry_run" = yes ] || exec sudo -- "$(realpath -- "${BASH_SOURCE[0]}")" "${arguments[@]}"
if [ "$mode" = install ]; then install_all; else uninstall; fi
