#!/bin/sh
# The demo's "game server": prints to its console, obeys the lines it reads, answers HTTP. Runs in the
# container, from the volume, on nothing but busybox.
port=$1
motd=$(sed -n 's/^motd=//p' server.properties)

save_and_exit() {
    echo "[server] saving the world"
    echo "last saved: $(date)" >world.dat
    exit 0
}
trap save_and_exit TERM INT

echo "[server] $motd"
httpd -p "$port" -h www || exit 1
for percent in 0 50 100; do
    echo "[server] preparing the world: $percent %"
    sleep 0.2
done
echo "[server] Done! Type help for help."

while read -r command rest; do
    case $command in
    help) echo "[server] help, list, say TEXT, later, whoami, crash, stop" ;;
    list) echo "[server] 0 of 20 players are here" ;;
    say) echo "[server] <console> $rest" ;;
    later) (sleep 5 && echo "[server] five seconds later") & ;;
    whoami) echo "[server] $(id)" ;;
    crash) echo "[server] as you wish" && exit 42 ;;
    stop) save_and_exit ;;
    '') ;;
    *) echo "[server] unknown command: $command" ;;
    esac
done
