# Sourced by the batch scripts: where the job runs, one step on all its nodes, and back into the queue.

export SLURM_EXPORT_ENV=ALL # srun hands the whole environment on, whatever sbatch was told

nodes=$SLURM_JOB_NUM_NODES
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the address SLURM itself uses: a node's name need not resolve on the others
MASTER_ADDR=$(scontrol show node "$first" --oneliner | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export MASTER_ADDR=${MASTER_ADDR:-$first}

RANKS_PER_NODE=${SLURM_GPUS_ON_NODE:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')}
if ((RANKS_PER_NODE == 0)); then # nodes without GPUs: one rank each, over gloo
    RANKS_PER_NODE=1
    export DS_ACCELERATOR=cpu
fi
export RANKS_PER_NODE

# srun does not take over sbatch's CPUs, and all ranks of a node would share one core; nodes may differ
cpus=$(tr ',' '\n' <<<"$SLURM_JOB_CPUS_PER_NODE" | cut -d'(' -f1 | sort -n | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > RANKS_PER_NODE ? cpus / RANKS_PER_NODE : 1))}

LAST_S=15 # before its end the job leaves, whether the ranks are ready or not
warned=0
interrupted=0

say() { echo "[$(date '+%F %T') job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}] $*"; }

# The batch shell alone is told that the time is nearly over; every rank gets to know it. The launchers ignore USR1.
warn() {
    interrupted=1
    if ((warned == 0)); then
        warned=1
        say "warned: the job is about to be stopped (USR1)"
        scancel --quiet --signal=USR1 "$SLURM_JOB_ID"
    fi
}
trap warn USR1

# Whether the job ends too soon to wait for the ranks any longer. SLURM moves the end when it preempts a job; one that has
# none was warned by hand, and its ranks may take the time that they need.
too_late() {
    local end
    end=$(scontrol show job "$SLURM_JOB_ID" --oneliner | grep -o ' EndTime=[^ ]*' | cut -d= -f2)
    [[ -n $end ]] && end=$(date -d "$end" +%s 2>/dev/null) && ((end - $(date +%s) < LAST_S))
}

# Runs `job.py node ...` once on every node; returns its exit code, 1 after a warning that it
# did not heed in time or that came before.
on_all_nodes() {
    local pid code
    ((warned)) && return 1
    MASTER_PORT=$(python launchers/slurm/job.py port) || return 1
    export MASTER_PORT
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$cpus" --cpu-bind=none \
        --kill-on-bad-exit=1 --wait=300 python launchers/slurm/job.py node "$@" &
    pid=$!
    while :; do
        interrupted=0
        wait "$pid"
        code=$?
        ((interrupted)) || return "$code"
        while kill -0 "$pid" 2>/dev/null; do
            if too_late; then
                say "the ranks did not end in time"
                return 1
            fi
            sleep 3
        done
    done
}

# Puts the job back into the queue, where it starts again with the same arguments and goes on from what is there.
requeue() {
    if [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) != RUNNING ]]; then
        say "cancelled: not put back into the queue"
        exit 1
    fi
    say "back into the queue: $*"
    # an exit code would do so only where the site set RequeueExit; SLURM ends this script during the sleep
    scontrol requeue "$SLURM_JOB_ID" && sleep 120
    say "SLURM does not requeue this job; submit it again and it goes on where it stopped"
    exit 1
}

# The last lines of the ranks that say what went wrong, three at most.
show_errors() {
    grep -lE 'Error|error:|Traceback' "$1"/*.log 2>/dev/null | head -n 3 | while read -r log; do
        echo "--- $log"
        tail -n 15 "$log"
    done
}
