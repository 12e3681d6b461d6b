#!/usr/bin/env bash
# From a clone to a running server: installs what is missing, builds lightd, starts it with a configuration of
# its own and brings a demo server up. May be run again at any time; what stands already is used.
set -euo pipefail
# shellcheck source=install-scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'END'
usage: install-scripts/quickstart.sh [OPTION]...

Installs what is missing (asking first), builds lightd, starts it and brings a demo server up to "running".

  --yes              install missing packages without asking
  --port PORT        where lightd listens (default 8070)
  --host ADDRESS     on which address (default 127.0.0.1)
  --server-port PORT where the demo server answers HTTP (default: the first free one from 25565); for a new demo only
  --data DIR         where everything is kept (default .lightd-demo in the checkout)
  --build-only       install and build, start nothing

  --stop             stop the servers and lightd (and Docker, if this script started it); all data stays
  --remove           stop, and take away all of it: servers, volumes, image, network, data
END
}

# The demo's own names, apart from those of a lightd that is installed on the same machine.
server=demo
image=lightd-demo:1
bridge=lightddemo0
subnets=10.87.0.0/16

mode=run
port=
host=
server_port=
data=$repo/.lightd-demo
parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --yes | -y) assume_yes=yes ;;
        --port | --host | --server-port | --data)
            [ $# -ge 2 ] || die "$1 wants a value." "See --help."
            case $1 in
            --port) port=$2 ;;
            --host) host=$2 ;;
            --server-port) server_port=$2 ;;
            --data) data=$(realpath -m -- "$2") ;;
            esac
            shift
            ;;
        --build-only) mode=build ;;
        --stop) mode=stop ;;
        --remove) mode=remove ;;
        --help | -h) usage && exit 0 ;;
        *) usage >&2 && die "unknown option: $1" ;;
        esac
        shift
    done
    local value
    for value in "$port" "$server_port"; do
        [[ -z $value || ($value =~ ^[0-9]{1,5}$ && $value -ge 1 && $value -le 65535) ]] ||
            die "not a port: $value" "Ports are numbers from 1 to 65535."
    done
    config=$data/config.json
    base=$data/lightd
    pidfile=$data/lightd.pid
    log=$data/lightd.log
    engine_pidfile=$data/dockerd.pid
    binary=$repo/target/release/lightd
    [ -z "${CARGO_TARGET_DIR:-}" ] || binary=$CARGO_TARGET_DIR/release/lightd
}

# --- the daemon ----------------------------------------------------------------------------------------------

# Two at once would each start a lightd, and only one could be stopped. Given up when this script ends: what it
# leaves running does not inherit it.
only_one() {
    exec 9<"${BASH_SOURCE[0]}"
    flock --nonblock 9 || die "another quickstart.sh of this checkout is at work." "Wait for it to end, then run this again."
}

build() {
    step "Building lightd (the first time takes 3 to 15 minutes)"
    (cd "$repo" && "$rust_dir/cargo" build --locked --release)
}

make_data_folder() {
    # The folder ignores itself, so that no commit ever takes anything of it along; git has to be able to read that.
    as_root mkdir -p "$data"
    as_root chmod 0755 "$data"
    echo '*' | as_root tee "$data/.gitignore" >/dev/null
    as_root mkdir -p -m 0700 "$base"
}

random_token() { printf 'lightd_%s' "$(head -c 30 /dev/urandom | base64 -w 0 | tr '+/' '-_')"; }

setting() { as_root jq -r "$1" "$config"; }

write_config() {
    local present='{}' wanted
    if as_root test -e "$config"; then present=$(as_root cat "$config"); fi
    # Handed over in the environment and on standard input: arguments can be read by everybody.
    wanted=$(TOKEN=$(random_token) jq --arg port "$port" --arg host "$host" --arg base "$base" \
        --arg bridge "$bridge" --arg subnets "$subnets" '
        .server.host = (if $host != "" then $host else .server.host // "127.0.0.1" end)
        | .server.port = (if $port != "" then ($port | tonumber) else .server.port // 8070 end)
        | .authorization.token = (.authorization.token // env.TOKEN)
        | .storage.base_path = $base
        | .network.bridge = $bridge
        | .network.subnets = $subnets' <<<"$present")
    [ "$wanted" != "$present" ] || return 0
    # shellcheck disable=SC2016 # The inner shell expands these.
    as_root sh -c 'umask 077; cat >"$1.new" && mv "$1.new" "$1"' sh "$config" <<<"$wanted"
}

read_config() {
    port=$(setting .server.port)
    token=$(setting .authorization.token)
    address=$(setting .server.host)
    case $address in 0.0.0.0) address=127.0.0.1 ;; ::) address=::1 ;; esac
    base_url=http://$address:$port
    case $address in *:*) base_url="http://[$address]:$port" ;; esac
}

ping_answers() { curl -fsS --max-time 5 "$base_url/api/v1/public/ping" >/dev/null 2>&1; }

start_lightd() {
    step "Starting lightd"
    if is_running "$pidfile" lightd; then
        if ping_answers && as_root test ! "$binary" -nt "$pidfile" -a ! "$config" -nt "$pidfile"; then
            say "It runs already (pid $(read_pid "$pidfile"))."
            return 0
        fi
        say "Restarting it with the present binary and configuration; servers keep running meanwhile."
        stop_pid "$pidfile" lightd 20 || die "the old lightd does not end." "See $log"
    fi
    ! port_is_taken "$address" "$port" || die "port $port is taken by another program." \
        "Choose another one: $0$again --port $((port % 65535 + 1))" "Who has it: $(sudo_if_needed)ss -ltnp 'sport = :$port'"
    # A new store knows nothing of the network that an earlier demo may have left.
    as_root test -e "$base/lightd.db" || engine DELETE "/networks/$bridge" -o /dev/null
    # shellcheck disable=SC2016 # The inner shell expands these.
    as_root sh -c 'nohup setsid "$1" --config "$2" >>"$3" 2>&1 </dev/null 9>&- & echo $! >"$4"' \
        sh "$binary" "$config" "$log" "$pidfile"
    local tries
    for tries in $(seq 100); do
        ping_answers && break
        [ "$tries" -lt 10 ] || is_running "$pidfile" lightd || break
        sleep 0.2
    done
    if ! ping_answers; then
        as_root tail -n 15 "$log" >&2
        die "lightd does not answer at $base_url." "Its last words stand above; all of them in $log"
    fi
    say "lightd $(curl -fsS "$base_url/api/v1/public/ping" | jq -r .version) answers at $base_url"
}

# --- its API ---------------------------------------------------------------------------------------------------

# api METHOD PATH [JSON]: leaves the status in $status and the body in $body.
api() {
    local arguments=(-sS --max-time 60 -K - -X "$1" -w '\n%{http_code}' "$base_url$2")
    [ $# -lt 3 ] || arguments+=(-H 'Content-Type: application/json' --data-binary "$3")
    local answer
    answer=$(curl "${arguments[@]}" <<END
header = "Authorization: Bearer $token"
header = "Accept: Application/vnd.pkglatv1+json"
END
    ) || die "lightd does not answer $1 $2." "See $log"
    status=${answer##*$'\n'}
    body=${answer%$'\n'*}
}

# must METHOD PATH [JSON]: an api call that has to succeed.
must() {
    api "$@"
    case $status in 2??) return 0 ;; esac
    complaints
    die "lightd answered $status to $1 $2: $(jq -r '.error // .' <<<"$body" 2>/dev/null || echo "$body")" "More in $log"
}

# What lightd last complained of.
complaints() { as_root grep -E ' (WARN|ERROR) ' "$log" | tail -n 3 >&2 || true; }

state() {
    must GET "/containers/$server"
    jq -r .state <<<"$body"
}

# wait_for STATE SECONDS: follows the server's states until it is in that one.
wait_for() {
    local wanted=$1 seen='' now tries begun=$SECONDS
    for tries in $(seq $(($2 * 5))); do
        now=$(state)
        [ "$now" = "$seen" ] || say "  $now"
        seen=$now
        [ "$now" != "$wanted" ] || return 0
        [ "$now" != failed ] || break
        [ "$tries" -lt 20 ] || [ "$now" != offline ] || break
        sleep 0.2
    done
    must GET "/containers/$server"
    say "install_error: $(jq -r .install_error <<<"$body"), exit_code: $(jq -r .exit_code <<<"$body")" >&2
    api GET "/containers/$server/logs?lines=15"
    jq -r '.data // .lines // .' <<<"$body" >&2 || true
    complaints
    die "the demo server is $seen, not $wanted, after $((SECONDS - begun)) s." \
        "Its last lines and lightd's complaints stand above; lightd's own log is $log" "Begin afresh: $0$again --remove, then $0$again"
}

# all_servers FILTER: what the jq filter makes of each server of this lightd.
all_servers() {
    must GET /containers
    jq -r ".containers[] | $1" <<<"$body"
}

# wait_until_none FILTER SECONDS
wait_until_none() {
    local tries left
    for tries in $(seq $(($2 * 5))); do
        left=$(all_servers "$1")
        [ -n "$left" ] || return 0
        sleep 0.2
    done
    die "after $2 s there is still: $left" "See $log"
}

# --- the demo server -------------------------------------------------------------------------------------------

import_image() {
    [ "$(engine GET "/images/$image/json" -o /dev/null -w '%{http_code}')" != 200 ] || return 0
    say "Importing the image $image (a static busybox, nothing else)"
    local root applet
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # Expanded now: the name is local.
    trap "rm -rf '$root'" EXIT
    mkdir -p "$root/bin" "$root/tmp" "$root/etc"
    cp "$(command -v busybox)" "$root/bin/busybox"
    chmod 0755 "$root" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    local said
    said=$(tar -C "$root" --owner=0 --group=0 -c . | engine POST "/images/create?fromSrc=-&repo=${image%:*}&tag=${image#*:}" \
        -H 'Content-Type: application/x-tar' --data-binary @-)
    rm -rf "$root"
    trap - EXIT
    [ "$(engine GET "/images/$image/json" -o /dev/null -w '%{http_code}')" = 200 ] || die "Docker did not take the image: $said"
}

free_server_port() {
    local candidate
    for candidate in $(seq 25565 25665); do
        port_is_taken 127.0.0.1 "$candidate" || { echo "$candidate" && return 0; }
    done
    die "all ports from 25565 to 25665 are taken." "Name another one: --server-port PORT"
}

# The five calls that a panel makes, in its order.
create_server() {
    if [ -z "$server_port" ]; then
        server_port=$(free_server_port)
    elif port_is_taken 127.0.0.1 "$server_port"; then
        die "port $server_port is taken by another program." "Choose another one: $0$again --server-port PORT"
    fi

    say "POST /volumes"
    must POST /volumes '{"name": "demo"}'
    local volume
    volume=$(jq -r .volume_id <<<"$body")

    say "POST /volumes/$volume/files"
    must POST "/volumes/$volume/files" '{"path": "server.properties", "content": "motd=Welcome to lightd\n"}'
    must POST "/volumes/$volume/files" "$(jq -n --rawfile content "$repo/install-scripts/demo/server.sh" '{path: "server.sh", $content}')"

    say "POST /network/ports"
    local wanted
    wanted=$(jq -n --argjson port "$server_port" '{ip: "0.0.0.0", $port, protocol: "tcp"}')
    api POST /network/ports "$wanted"
    case $status in 2?? | 409) ;; *) die "lightd refused port $server_port: $(jq -r .error <<<"$body")" ;; esac

    say "POST /containers"
    must POST /containers "$(jq -n --arg id "$server" --arg image "$image" --arg volume "$volume" \
        --argjson port "$wanted" --rawfile script "$repo/install-scripts/demo/install.sh" '{
            internal_id: $id,
            $image,
            volume_id: $volume,
            startup_command: "sh server.sh {{SERVER_PORT}}",
            start_pattern: "Done!",
            stop: {command: "stop"},
            ports: [$port],
            limits: {memory: 67108864, cpu: 0.5},
            install_script: $script
        }')"
}

bring_up_server() {
    step "Bringing the demo server up"
    import_image
    api GET "/containers/$server"
    case $status in
    404) create_server && wait_for offline 120 ;;
    200) say "The demo server is there already, with its port and files." && wait_until_none 'select(.state == ("unknown", "installing", "stopping")).internal_id' 120 ;;
    *) die "lightd answered $status: $body" "See $log" ;;
    esac
    say "POST /containers/$server/start"
    must POST "/containers/$server/start"
    wait_for running 60
    must GET "/containers/$server"
    server_port=$(jq -r '.ports[0].port' <<<"$body")
    curl -fsS --max-time 10 --retry 5 --retry-connrefused "http://127.0.0.1:$server_port/" | grep -q 'It runs.' ||
        die "the server runs, but its port $server_port does not answer." "See $log, and: $(sudo_if_needed)$binary --config $config doctor" \
            "Begin afresh: $0$again --remove, then $0$again"
}

sudo_if_needed() { [ "$(id -u)" = 0 ] || echo "sudo "; }

summary() {
    local run
    run="$(sudo_if_needed)$binary --config $config"
    cat <<END

lightd runs, and so does its first server.

  API              $base_url
  token            $token
  the server       http://127.0.0.1:$server_port/
  its console      $run console $server

Now put this in your shell and take the tour in README.md:

  export LIGHTD=$base_url TOKEN=$token

Stop it all:       $0$again --stop
Take it all away:  $0$again --remove
END
}

# --- the ways to end -------------------------------------------------------------------------------------------

stop_servers() {
    local id
    for id in $(all_servers 'select(.state == ("running", "starting", "paused")).internal_id'); do
        say "stopping $id"
        api POST "/containers/$id/stop"
    done
    wait_until_none 'select(.state == ("running", "starting", "paused", "stopping")).internal_id' 60
}

remove_servers() {
    local id
    for id in $(all_servers .internal_id); do
        say "removing $id"
        must DELETE "/containers/$id"
    done
    wait_until_none .internal_id 60
}

# stop_all stop|remove
stop_all() {
    step "Stopping"
    if ! as_root test -e "$config"; then
        say "There is no demo in $data."
        return 0
    fi
    read_config
    # What is to be removed is known to lightd alone, so it has to run for that.
    if [ "$1" = remove ] && ! is_running "$pidfile" lightd; then
        ensure_engine "$data"
        start_lightd
    fi
    if is_running "$pidfile" lightd; then
        if [ "$1" = remove ]; then remove_servers; else stop_servers; fi
        stop_pid "$pidfile" lightd 20 || die "lightd does not end." "See $log"
        say "lightd has ended."
    else
        say "lightd does not run."
    fi
}

remove_traces() {
    # Only a folder that this script has made.
    as_root test -e "$data/.gitignore" -a -e "$config" || return 0
    if engine_answers; then
        engine DELETE "/images/$image" -o /dev/null
        engine DELETE "/networks/$bridge" -o /dev/null
    fi
    local family
    for family in inet bridge; do as_root nft delete table "$family" "$bridge" 2>/dev/null || true; done
    stop_engine "$engine_pidfile" || die "dockerd does not end." "See $data/dockerd.log"
    as_root rm -rf -- "$data"
    say "Nothing of the demo is left but the build in target/."
}

# --- all of it -------------------------------------------------------------------------------------------------

parse_arguments "$@"
again=
[ "$data" = "$repo/.lightd-demo" ] || again=" --data $data"
require_root_or_sudo
drop_sudo "$(realpath -- "${BASH_SOURCE[0]}")" "$@"
only_one

case $mode in
stop)
    stop_all stop
    stop_engine "$engine_pidfile" || die "dockerd does not end." "See $data/dockerd.log"
    exit 0
    ;;
remove)
    stop_all remove
    remove_traces
    exit 0
    ;;
esac

step "Looking for what is missing"
want_build_tools
want jq jq
want nftables nft
want_static_busybox
want_rust build
want_engine
install_missing
require_rust
build
[ "$mode" = run ] || exit 0

make_data_folder
step "Looking for Docker"
ensure_engine "$data"
say "Docker $(engine GET /version | jq -r .Version) answers."
write_config
read_config
start_lightd
bring_up_server
summary
