# shellcheck shell=bash
# What the job scripts share; they source it: run stages side by side on whatever is here (cores,
# GPUs, a Slurm allocation), pass signals on, and end with a status that says what to do.
#
# A stage saves and exits 75 when it is told to stop. On Slurm's warning before the time limit
# (USR2) the job then requeues itself, as long as it gets somewhere; after TERM it only ends, for
# that is scancel, or a preemption after which Slurm requeues by itself.

job=job			# the script's name in messages
run_dir=''		# the run, and ...
log_dir=''		# ... each stage's log; set by the script
MAX_RESTARTS=${MAX_RESTARTS:-100}
slots=1 threads=1 gpus=() prefix=()	# set by share_out
child_pids=()		# the stages running now, by slot; '' is a free one
stop_signal=''		# the signal that asked for an end, if any
job_id=${LUNGKIT_JOB:-$(date +%s).$$}	# of the outermost script, in timings.tsv
job_start=${job_id%.*}

say() { printf '%s: %s\n' "$job" "$*" >&2; }
fault() { printf '%s: error: %s\n' "$job" "$*" >&2; }
bad_option() { fault "$@"; exit 2; }

absolute() { [[ $1 == /* ]] && printf '%s\n' "$1" || printf '%s/%s\n' "$PWD" "$1"; }

check_positive() {	# check_positive NAME VALUE
	[[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || bad_option "$1 is '$2': expected a whole number of at least 1"
}

# ---------------------------------------------------------------- what is here

cores() {	# that this job may use, by affinity and by a container's quota
	local count quota period
	count=$(env -u OMP_NUM_THREADS nproc)
	if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]]; then
		((quota = (quota + period - 1) / period, count = quota < count ? quota : count))
	fi
	printf '%s\n' "$((count > 0 ? count : 1))"
}

find_gpus() {	# sets gpus=(0 1 ...), as CUDA_VISIBLE_DEVICES spells them
	gpus=()
	command -v nvidia-smi >/dev/null || return 0
	mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | grep -E '^[0-9]+$' || true)
	if [[ -n ${CUDA_VISIBLE_DEVICES+set} && ${#gpus[@]} -gt 0 ]]; then
		IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
		[[ ${gpus[0]:-} != -1 ]] || gpus=()
	fi
}

# Divide the machine or the allocation among $1 processes at a time; empty: one per Slurm task, or
# one per GPU, or else $2. Sets slots, threads (of each) and prefix (what starts one on its share).
share_out() {
	local wanted=$1 per_node gpus_each memory
	prefix=()
	find_gpus
	if [[ -n ${SLURM_JOB_ID:-} && ${SLURM_NTASKS:-1} -gt 1 ]] && command -v srun >/dev/null; then
		slots=${wanted:-$SLURM_NTASKS}
		((slots <= SLURM_NTASKS)) || slots=$SLURM_NTASKS
		threads=${SLURM_CPUS_PER_TASK:-1}
		prefix=(srun --exact --nodes=1 --ntasks=1 "--cpus-per-task=$threads" --kill-on-bad-exit=0)
		per_node=$(((SLURM_NTASKS + ${SLURM_JOB_NUM_NODES:-1} - 1) / ${SLURM_JOB_NUM_NODES:-1}))
		if [[ -n ${SLURM_MEM_PER_NODE:-} ]]; then	# else a step takes it all, and the next one waits
			memory=$((SLURM_MEM_PER_NODE / per_node))
			((memory == 0)) || prefix+=("--mem=${memory}M")
		fi
		if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
			gpus_each=$((SLURM_GPUS_ON_NODE / per_node))
			((gpus_each > 0)) || say "warning: fewer GPUs than tasks on a node: the tasks take turns"
			prefix+=("--gres=gpu:$((gpus_each > 0 ? gpus_each : 1))")
		fi
	else
		slots=$wanted
		if [[ -z $slots ]]; then
			slots=${#gpus[@]}
			((slots > 0)) || slots=$2
		fi
		threads=$(($(cores) / slots))
		((threads > 0)) || threads=1
	fi
	threads=${OMP_NUM_THREADS:-$threads}
}

# ---------------------------------------------------------------- running stages

# Run the stages NAME..., at most $1 at a time. The script's function `stage_command NAME` sets the
# array `command` and, if need be, `stdout` (a file for the standard output) or `log` (empty: the
# stage speaks for itself). Returns when all have ended: 0, 75 (stopped, the same command resumes)
# or the status of the first that failed; a failure stops none that runs, but no more are started.
run_stages() {
	local count=$1 k status=0 ended all
	shift
	child_pids=()
	while :; do
		for ((k = 0; k < count; k++)); do
			if [[ -n ${child_pids[k]:-} ]] && ! kill -0 "${child_pids[k]}" 2>/dev/null; then
				ended=0
				end_stage "$k" || ended=$?
				((status != 0 && status != 75)) || ((ended == 0)) || status=$ended
			fi
			if [[ -z ${child_pids[k]:-} && $# -gt 0 && $status -eq 0 && -z $stop_signal ]]; then
				start_stage "$k" "$1"
				[[ -z $stop_signal ]] || pass_signal_on "$k"	# it came just now
				shift
			fi
		done
		all=${child_pids[*]}
		[[ -n ${all// /} ]] || break
		sleep 0.2
	done
	[[ $status -ne 0 || $# -eq 0 ]] || status=75	# stopped before all were started
	return "$status"
}

start_stage() {	# start_stage SLOT NAME
	local k=$1 name=$2 command=() stdout='' log=$log_dir/${2// /-}.log seen=0 share
	stage_command "$name"
	child_names[k]=$name child_logs[k]=$log child_starts[k]=$(date +%s) child_echo[k]=''
	if [[ -z $log ]]; then
		"${command[@]}" &
		child_pids[k]=$!
		return
	fi
	: >>"$log"
	seen=$(stat -c %s "$log")
	share=("OMP_NUM_THREADS=$threads")
	((${#prefix[@]} > 0 || ${#gpus[@]} == 0)) || share+=("CUDA_VISIBLE_DEVICES=${gpus[k % ${#gpus[@]}]}")
	env "${share[@]}" "${prefix[@]}" "${command[@]}" >>"${stdout:-$log}" 2>>"$log" &
	child_pids[k]=$!
	# Show the log as it grows. The stage itself writes to a file: a reader that a signal ends
	# would take it along.
	tail -c "+$((seen + 1))" -s 0.2 --pid="${child_pids[k]}" -f "$log" | while IFS= read -r line; do
		printf '[%s] %s\n' "$name" "$line"
	done >&2 &
	child_echo[k]=$!
}

end_stage() {	# end_stage SLOT: 0, 75 or the stage's failure, which is told in one line
	local k=$1 status=0 name=${child_names[$1]} log=${child_logs[$1]} last=''
	wait "${child_pids[k]}" || status=$?
	child_pids[k]=''
	[[ -z ${child_echo[k]} ]] || wait "${child_echo[k]}" || true
	# a signal that comes before Python is ready to note it ends it at once: it has begun nothing
	[[ -z $stop_signal || $status -lt 128 ]] || status=75
	[[ -n $log ]] || return "$status"	# it has told of itself
	[[ ! $name =~ ^(cnn\ .*)\ [0-9]+$ ]] || name=${BASH_REMATCH[1]}	# one line for all that share the work
	printf '%s\t%s\t%s\t%s\t%s\n' "$job_id" "$name" "${child_starts[k]}" "$(date +%s)" "$status" \
		>>"$log_dir/timings.tsv"
	if ((status != 0 && status != 75)); then
		[[ ! -s $log ]] || last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1)
		fault "stage $name failed (exit $status): ${last:-no message} (log: $log)"
	fi
	return "$status"
}

# Seconds of each stage, from its first start to its last end: in this job, and in all so far.
print_timings() {
	say "seconds by stage (this run / with the runs before it)"
	awk -F '\t' -v id="$job_id" '
		{
			key = $1 FS $2
			if (!($2 in seen)) { seen[$2]; order[++count] = $2 }
			if (!(key in first) || $3 < first[key]) first[key] = $3
			if ($4 > last[key]) last[key] = $4
		}
		END {
			for (key in first) {
				split(key, part, FS)
				all[part[2]] += last[key] - first[key]
				if (part[1] == id) now[part[2]] += last[key] - first[key]
			}
			for (k = 1; k <= count; k++) printf "  %-28s %7d / %7d\n", order[k], now[order[k]], all[order[k]]
		}' "$log_dir/timings.tsv" >&2
	printf '  %-28s %7d\n' 'in all' "$(($(date +%s) - job_start))" >&2
}

# ---------------------------------------------------------------- signals and the end

note_signal() {	# note_signal NAME
	local k
	[[ -z $stop_signal ]] || return 0	# once: a stage that has saved no longer notes a second one
	stop_signal=$1
	say "$1: the running stages save and stop"
	for k in "${!child_pids[@]}"; do
		[[ -z ${child_pids[k]} ]] || pass_signal_on "$k"
	done
}

pass_signal_on() {	# pass_signal_on SLOT
	local signal=TERM
	# srun passes USR2 on to its tasks, but takes TERM as an order to kill them
	((${#prefix[@]} == 0)) || signal=USR2
	kill -s "$signal" "${child_pids[$1]}" 2>/dev/null || true
}

# What has been made so far under $run_dir, as one hash: of files, not of logs.
progress_mark() {
	find "$run_dir" -name logs -prune -o -type f ! -name '*.jsonl' ! -name '.*.lock' ! -name '.*.tmp*' \
		! -name .options.json \
		-printf '%P %s %T@\n' 2>/dev/null | sort | sha256sum
}

# begin_job: call once the options are checked; afterwards every way out is end_job.
begin_job() {
	mkdir -p "$log_dir" || { fault "cannot make $log_dir: set RUN to a place that can be written"; exit 1; }
	mark_at_start=$(progress_mark)
	trap 'note_signal USR2' USR2
	trap 'note_signal TERM' TERM
	trap 'note_signal INT' INT
}

end_job() {	# end_job STATUS
	local restarts=${SLURM_RESTART_COUNT:-0}
	trap '' USR2 TERM INT
	[[ -z ${LUNGKIT_JOB:-} ]] || exit "$1"	# part of a larger job, which ends it
	if [[ $1 -ne 75 ]]; then
		exit "$1"
	elif [[ ${ENVIRONMENT:-} != BATCH || -z ${SLURM_JOB_ID:-} ]]; then
		say "stopped; everything is saved: run the same command again to go on"
	elif [[ $stop_signal == TERM || $stop_signal == INT ]]; then
		say "stopped by $stop_signal; everything is saved: submit the same job again to go on"
	elif ((restarts >= MAX_RESTARTS)); then
		fault "restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS: submit again with more --time"
		exit 1
	elif [[ $(progress_mark) == "$mark_at_start" ]]; then
		fault "no progress since the last start: not requeued; give the job more --time"
		exit 1
	elif scontrol requeue "$SLURM_JOB_ID"; then
		say "requeued (restart $((restarts + 1)) of at most $MAX_RESTARTS)"
	else
		fault "scontrol requeue $SLURM_JOB_ID failed: submit the same job again to go on"
	fi
	exit 75
}
