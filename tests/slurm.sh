#!/usr/bin/env bash
# The smoke sweep of Figure 4, or of the targets given, through a real Slurm of one node, started here and ended again.
# Needs root, and Debian's munge, slurmctld, slurmd and slurm-client; says so and ends with 77 where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in munged slurmctld slurmd squeue; do
    if [ "$(id -u)" != 0 ] || ! command -v "$program" > /dev/null; then
        echo "skipped: needs root and $program (apt-get install munge slurmctld slurmd slurm-client)"
        exit 77
    fi
done

conf=/etc/slurm/slurm.conf  # where jobs find it too: their environment holds nothing of the submitter's Slurm
if [ -e "$conf" ]; then
    echo "skipped: $conf is there, this machine has a Slurm of its own"
    exit 77
fi

folder=$(mktemp -d)
name=$(hostname -s)
cleanup() {
    for pid in "$folder"/*.pid; do
        [ -f "$pid" ] && kill "$(cat "$pid")" 2> /dev/null || true
    done
    sleep 1
    rm -rf "$folder" "$conf" results/slurm figures/slurm
}
trap cleanup EXIT

mkdir -p "$folder/state" "$folder/spool"
head -c 1024 /dev/urandom > "$folder/munge.key"
chmod 700 "$folder"
chmod 400 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"

mkdir -p "$(dirname "$conf")"
cat > "$conf" << EOF
ClusterName=loopback
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
MinJobAge=600
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/Mem:/ {print int($2 * 0.9)}') State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd
for _ in $(seq 30); do
    sinfo --noheader --format=%t 2> /dev/null | grep -q idle && break
    sleep 1
done
sinfo

snakemake --profile profiles/slurm --configfile profiles/smoke.yaml --latency-wait 5 \
    --slurm-init-seconds-before-status-checks 5 --slurm-status-command squeue --slurm-no-account \
    --config results=results/slurm figures=figures/slurm -- "${@:-figure4}"
echo "$(ls results/slurm/curves/*.parquet | wc -l) curves came through Slurm."
