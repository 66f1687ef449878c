#!/usr/bin/env bash
# A real SLURM cluster of two nodes on this one machine, for tests and for trying the scripts: munge, slurmctld and two
# slurmd, on the loopback only, as root or as an ordinary user. Each node claims 4 CPUs and 2 GPUs, which it has not.
#
#   scripts/slurm/local_cluster.sh install       the Debian packages, as root; nothing to do where they are
#   scripts/slurm/local_cluster.sh start DIR     all of it lies in DIR; prints the line that points SLURM's commands to it
#   scripts/slurm/local_cluster.sh status DIR
#   scripts/slurm/local_cluster.sh stop DIR      jobs first, then the daemons; DIR stays, with its logs
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps daemons

PACKAGES="slurmctld slurmd slurm-client munge"
NODES="n1 n2"
PATIENCE=60 # seconds until the nodes are there

stop_with() {
    printf 'local_cluster: %s\n' "$*" >&2
    exit 1
}

installed() { # each by itself: `command -v` of several succeeds if one of them is there
    local name
    for name in munged slurmctld slurmd sbatch unshare; do
        command -v "$name" >/dev/null || return
    done
}

install_packages() {
    installed && return
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        stop_with "SLURM is not installed; on Debian or Ubuntu, run as root: apt-get install -y --no-install-recommends $PACKAGES"
    fi
    # shellcheck disable=SC2086  # a list of words
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $PACKAGES; } >&2
}

# The pids of this cluster's daemons called NAME: what else runs here has another SLURM_CONF in its environment.
daemons() {
    local process name
    for process in /proc/[0-9]*; do
        if { read -r name <"$process/comm"; } 2>/dev/null && [ "$name" = "$1" ] &&
            tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
            echo "${process#/proc/}"
        fi
    done
}

within() { # SECONDS COMMAND...: try until it succeeds
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

free_ports() { # three of them
    python3 - <<'PYTHON'
import socket

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(each.getsockname()[1] for each in sockets))
PYTHON
}

write_configuration() {
    local port ports node user
    user=$(id -un)
    read -r -a ports < <(free_ports)
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
# No cgroups: nothing is bound or limited, and a node may claim more CPUs than there are.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
# Quick where real clusters are patient.
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
KillWait=60
MinJobAge=86400
ReturnToService=2
PropagateResourceLimits=NONE
PartitionName=all Nodes=${NODES// /,} Default=YES MaxTime=INFINITE State=UP
CONF
    cp /etc/hosts "$dir/hosts"
    for node in $NODES; do
        port=${ports[${node#n}]}
        mkdir -p "$dir/spool.$node"
        echo "127.0.0.1 $node" >>"$dir/hosts"
        echo "NodeName=$node NodeHostname=localhost NodeAddr=127.0.0.1 Port=$port CPUs=4 RealMemory=16000 Gres=gpu:2" >>"$SLURM_CONF"
        printf "NodeName=$node Name=gpu File=$dir/gpu%d Flags=nvidia_gpu_env\n" 0 1 >>"$dir/gres.conf"
    done
    ln -s /dev/null "$dir/gpu0" # a link: SLURM hands out CUDA_VISIBLE_DEVICES only for what leads to a device
    ln -s /dev/null "$dir/gpu1"
}

launch() { # NAME COMMAND...: in the background, of a session of its own, with a log
    local name=$1
    shift
    setsid "$@" </dev/null >"$dir/log/$name" 2>&1 &
}

# slurmd in a host name of its own and with an /etc/hosts that knows both nodes, so that their names resolve in jobs.
launch_node() {
    local apart=(unshare --mount --uts)
    [ "$(id -u)" -eq 0 ] || apart+=(--user --map-current-user --keep-caps)
    if "${apart[@]}" true 2>/dev/null; then
        # shellcheck disable=SC2016  # for the shell inside
        launch "slurmd.$1" "${apart[@]}" sh -c 'mount --bind "$1" /etc/hosts && hostname "$2" && exec slurmd -D -N "$2"' \
            sh "$dir/hosts" "$1"
    else
        echo "local_cluster: unshare is forbidden here, so host names do not resolve in jobs of both nodes" >&2
        launch "slurmd.$1" slurmd -D -N "$1"
    fi
}

all_idle() { [ "$(timeout 5 sinfo --noheader --Node --states=idle --format=%N | sort -u | xargs)" = "$NODES" ]; }

start() {
    installed || stop_with "SLURM is not installed: run \`$0 install\` as root"
    { gone slurmctld && gone munged; } || stop_with "a cluster runs in $dir already: \`$0 stop $dir\` ends it"
    rm -rf "$dir"/{state,log,spool.*,gres.conf,gpu?,munge.*}
    mkdir -p "$dir"/{state,log}
    chmod 755 "$dir"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    write_configuration
    launch munged munged --foreground --socket="$dir/munge.socket" --key-file="$dir/munge.key" \
        --pid-file="$dir/munge.pid" --seed-file="$dir/munge.seed" --log-file="$dir/log/munged.log"
    within $PATIENCE test -S "$dir/munge.socket" || stop_with "munged does not start: see $dir/log"
    launch slurmctld slurmctld -D -i
    for node in $NODES; do launch_node "$node"; done
    if ! within $PATIENCE all_idle; then
        stop
        stop_with "the nodes did not come up in $PATIENCE s: see $dir/log"
    fi
    echo "export SLURM_CONF=$SLURM_CONF"
}

no_jobs() { [ -z "$(timeout 5 squeue --noheader)" ]; }

gone() { [ -z "$(daemons "$1")" ]; }

stop() {
    local name pid
    if ! gone slurmctld && ! no_jobs; then
        timeout 5 squeue --noheader --format=%A | sort -u | xargs --no-run-if-empty timeout 10 scancel || true
        within 15 no_jobs || true
    fi
    for name in slurmstepd slurmd slurmctld munged; do
        for pid in $(daemons $name); do kill -TERM "$pid" 2>/dev/null || true; done
        within 5 gone $name || true
        for pid in $(daemons $name); do kill -KILL "$pid" 2>/dev/null || true; done
    done
}

status() {
    local name
    for name in munged slurmctld slurmd; do echo "$name: $(daemons $name | xargs)"; done
    ! gone slurmctld || stop_with "no cluster runs in $dir: \`$0 start $dir\` starts one"
    timeout 5 sinfo --Node
    timeout 5 squeue
}

case ${1:-} in
install) install_packages ;;
start | stop | status)
    dir=${2:-}
    # A unix socket's path has room for little more.
    if [[ $dir != /?* ]] || [ ${#dir} -ge 70 ]; then
        stop_with "give a folder by its absolute path, of less than 70 characters: $0 $1 /tmp/cluster"
    fi
    export SLURM_CONF=$dir/slurm.conf
    "$1"
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
