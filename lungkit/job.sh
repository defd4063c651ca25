# shellcheck shell=bash
# What the job scripts share; they source it: run stages side by side on whatever is here (cores,
# GPUs, a Slurm allocation), pass signals on, and end with a status that says what to do.
#
# A stage saves and exits 75 when it is told to stop. On Slurm's warning before the time limit
# (USR2) the job then requeues itself, as long as a stage has saved something new; after TERM it only
# ends, for that is scancel, or a preemption after which Slurm requeues by itself.

unset CDPATH BASH_ENV ENV	# a site's: they change what `cd` prints and what a `bash` begins with
job=job			# the script's name in messages
run_dir=''		# the run, and ...
log_dir=''		# ... each stage's log; set by the script
MAX_RESTARTS=${MAX_RESTARTS:-100}
slots=1 threads=1 share=1 gpus=() gpus_in='' prefix=()	# set by share_out
here=(0)		# the replicates that this job makes, by find_replicates
child_pids=()		# the stages running now, by slot; '' is a free one
stop_signal=''		# the signal that asked for an end, if any
stop_at=0		# ... and when it came
STOP_SEC=110		# a stage that has not stopped so long after the warning is killed: Slurm
			# gives 180 at least, of which asking for the requeue may need 60
said_dir='' said=0		# what the stages of this job say: a folder, and how many files in it
idle=''			# a descriptor on which nothing ever comes, by which a shell waits without a fork
printf -v job_id '%(%s)T.%s' -1 "${SLURM_JOB_ID:-0}.${SLURM_RESTART_COUNT:-0}.$$"
job_id=${LUNGKIT_JOB:-$job_id}	# of the outermost script
job_start=${job_id%%.*}

say() { printf '%s: %s\n' "$job" "$*" >&2; }
fault() { printf '%s: error: %s\n' "$job" "$*" >&2; }
bad_option() { fault "$@"; exit 2; }
is_batch() { [[ ${ENVIRONMENT:-} == BATCH && -n ${SLURM_JOB_ID:-} ]]; }

absolute() { [[ $1 == /* ]] && printf '%s\n' "$1" || printf '%s/%s\n' "$PWD" "$1"; }

check_positive() {	# check_positive NAME VALUE
	[[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || bad_option "$1 is '$2': expected a whole number of at least 1"
}

# Under `srun -n2 bash SCRIPT` one works; its own steps overlap the one it is in, and a generator that
# it starts without a step waits for no other task.
only_rank_0() {
	unset SLURM_STEP_NUM_TASKS
	[[ ${SLURM_STEP_ID:-} =~ ^[0-9]+$ && ${SLURM_PROCID:-0} -gt 0 ]] || return 0
	say "rank $SLURM_PROCID has nothing to do: rank 0 shares the work out"
	exit 0
}

# What the first start of a run decided holds for the later ones, wherever they come to run.
# An empty file is none: a full disk or a power cut left it. A disk that takes nothing ends nothing here.
kept() {	# kept NAME [VALUE]: print it; VALUE is kept where nothing is yet
	local place=$run_dir/decided/$1 own=$run_dir/decided/$1.$job_id lines
	if [[ ! -s $place && -n ${2:-} ]]; then
		{
			mkdir -p "$run_dir/decided" && printf '%s\n' "$2" >"$own" &&
				{ [[ -s $place ]] || rm -f "$place"; } &&
				{ ln "$own" "$place" || mv -n "$own" "$place"; }	# neither replaces another's
			rm -f "$own"
		} 2>/dev/null || true
	fi
	[[ -s $place ]] && mapfile -t lines <"$place" && printf '%s\n' "${lines[@]}" || printf '%s\n' "${2:-}"
}

keep_threads() {	# keep_threads NAME: from here on results depend on them
	kept "$1" "$threads" >/dev/null
	go_by_threads "$1"
}

go_by_threads() {	# go_by_threads NAME: another number of threads rounds otherwise
	local begun
	begun=$(kept "$1")
	[[ $begun =~ ^[1-9][0-9]*$ ]] || begun=$threads
	((begun == threads)) ||
		say "$threads thread(s) a stage here, but the run was begun with $begun, and its results depend on it: $begun it is (by $run_dir/decided/$1: for another number remove it, and what was made)"
	threads=$begun
}

go_by_device() {	# sets device; a broken driver must not go on with days of work on the CPU
	local now=cpu given=${SLURM_GPUS_ON_NODE:-${SLURM_JOB_GPUS:+1}}
	((${#gpus[@]} == 0)) || now=cuda
	device=$(kept device)
	device=${device:-$now}
	if [[ $device == cuda && $now == cpu && $given =~ [1-9] ]]; then
		fault "the run was begun on a GPU, Slurm gave one, and nvidia-smi shows none on $HOSTNAME: submit again with --exclude=$HOSTNAME, or remove $run_dir/decided/device to go on without"
		exit 1
	elif [[ $device == cuda && $now == cpu ]]; then
		say "warning: the run was begun on a GPU, and there is none here: it goes on on the CPU"
	fi
}

# ---------------------------------------------------------------- replicates
# Replicate 0 is the run itself; each further one is a run directory of its own in it. Their results
# lie in one tree.

place() {	# place REPLICATE: its run directory
	(($1 == 0)) && printf '%s\n' "$run_dir" || printf '%s/replicates/%03d\n' "$run_dir" "$1"
}

# shellcheck disable=SC2153	# the scripts set SEED
seed_of() { printf '%s\n' "$((10#$SEED + 1000 * $1))"; }	# seed_of REPLICATE: of its split, generators, trainings

named() {	# named STAGE REPLICATE: what run_stages starts
	(($2 == 0)) && printf '%s\n' "$1" || printf '%s of replicate %d\n' "$1" "$2"
}

# shellcheck disable=SC2034	# the scripts' stage_command reads what it sets
read_name() {	# read_name NAME: sets stage, replicate, root (its run directory) and seed
	stage=$1 replicate=0
	if [[ $1 =~ ^(.*)\ of\ replicate\ ([0-9]+)(.*)$ ]]; then
		stage=${BASH_REMATCH[1]}${BASH_REMATCH[3]} replicate=${BASH_REMATCH[2]}
	fi
	root=$(place "$replicate") seed=$(seed_of "$replicate")
}

# Sets REPLICATES, where it is not given (as many as the run has, or as the job array), and here: all
# of them, or the one of this task of an array.
# shellcheck disable=SC2034	# the scripts read `here`
find_replicates() {
	local folder task=${SLURM_ARRAY_TASK_ID:-}
	if [[ -z $REPLICATES ]]; then
		REPLICATES=1
		for folder in "$run_dir"/replicates/[0-9][0-9][0-9]; do
			[[ ! -d $folder ]] || REPLICATES=$((10#${folder##*/} + 1))
		done
		[[ -z $task ]] || ((${SLURM_ARRAY_TASK_MAX:-$task} < REPLICATES)) || REPLICATES=$((${SLURM_ARRAY_TASK_MAX:-$task} + 1))
	fi
	[[ $REPLICATES =~ ^[1-9][0-9]{0,2}$ ]] || bad_option "REPLICATES is '$REPLICATES': expected a whole number from 1 to 999"
	if [[ -z $task ]]; then
		for ((task = 0; task < REPLICATES; task++)); do here[task]=$task; done
	elif ((task < REPLICATES)); then
		here=("$task")
	else
		bad_option "task $task of the job array: REPLICATES=$REPLICATES are the tasks 0 to $((REPLICATES - 1))"
	fi
}

# The options of each stage that all replicates would share, and must not.
check_replicates() {	# check_replicates VARIABLE...
	local name
	((REPLICATES > 1)) || return 0
	for name in "${@^^}"; do
		[[ ! ${!name:-} =~ (^|[[:space:]])--(seed|fold|replicate)([[:space:]=]|$) ]] ||
			bad_option "$name holds --${BASH_REMATCH[2]}, which each of $REPLICATES replicates has of its own: set SEED, FOLDS or REPLICATES"
	done
}

# ---------------------------------------------------------------- several tasks
# A run of several tasks holds a run of each, under its name, and a table of all: RUN/tasks.txt.

tasks=()	# of such a run: the script that sources this one sets them

is_of_tasks() { [[ $1 =~ ^(task|images)\ of\ [a-z]+-[a-z]+$ || $1 == tasks ]]; }	# is_of_tasks NAME

is_view_before() {	# is_view_before TASK: whether an earlier task of the run shows the same view
	local name
	for name in "${tasks[@]}"; do
		[[ $name != "$1" ]] || return 1
		[[ ${name%%-*} != "${1%%-*}" ]] || return 0
	done
	return 1
}

task_command() {	# task_command NAME: sets what run_stages starts, of tasks and task_script
	if [[ $1 == tasks ]]; then
		stdout=/dev/null	# tasks.txt is shown
		command=(python -m lungkit.compare.tasks "$run_dir" --tasks "${tasks[@]}")
	else
		log=''	# it has logs of its own
		command=(env "LUNGKIT_JOB=$job_id" TASKS= "RUN=$run_dir/${1#* of }" "TASK=${1#* of }" "${task_script[@]}")
		! is_view_before "${1#* of }" || command=(env SEGMENT= "${command[@]}")
		[[ $1 != images* ]] || command=(env LUNGKIT_UNTIL=images "${command[@]}")
	fi
}

run_tasks() {	# every task, then the table of all, where none is left to others of a job array
	local name missing=()
	run_stages 1 "${tasks[@]/#/task of }" || end_job $?
	for name in "${tasks[@]}"; do
		[[ -f $run_dir/$name/comparison/comparison.json ]] || missing+=("$name")
	done
	if ((${#missing[@]} > 0)); then
		say "no table of all tasks yet: ${missing[*]} have no comparison, which the task of the array that ends last makes; then run this command again"
		return
	fi
	run_stages 1 tasks || end_job $?
	cat "$run_dir/tasks.txt"
}

# ---------------------------------------------------------------- what is here

cores() {	# that this job may use, by affinity, by a container's quota and by the allocation
	local count quota period given=''
	count=$(unset OMP_NUM_THREADS && nproc)
	[[ -z ${SLURM_JOB_ID:-} ]] || given=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-}}
	[[ ! $given =~ ^[1-9][0-9]*$ ]] || ((count = given < count ? given : count))
	if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max ]]; then
		((quota = (quota + period - 1) / period, count = quota < count ? quota : count))
	fi
	printf '%s\n' "$((count > 0 ? count : 1))"
}

find_gpus() {	# sets gpus=(0 1 ...), as CUDA_VISIBLE_DEVICES spells them; asked once in one environment
	local device visible=() where=$PATH:${CUDA_VISIBLE_DEVICES-all}
	[[ $where != "$gpus_in" ]] || return 0
	gpus=() gpus_in=$where
	command -v nvidia-smi >/dev/null || return 0
	while IFS= read -r device; do
		[[ ! $device =~ ^[0-9]+$ ]] || gpus+=("$device")
	done < <(timeout -k 5 30 nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
	[[ -n ${CUDA_VISIBLE_DEVICES+set} && ${#gpus[@]} -gt 0 ]] || return 0
	IFS=', ' read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
	gpus=()
	for device in "${visible[@]}"; do	# as CUDA: up to the first that is none (-1, NoDevFiles)
		[[ $device =~ ^([0-9]+|(GPU|MIG)-.+)$ ]] || break
		gpus+=("$device")
	done
}

read_threads() {	# OMP_NUM_THREADS may be a list, by depth of nesting: the first counts
	local first=${OMP_NUM_THREADS:-}
	first=${first%%,*}
	first=${first//[[:space:]]/}
	if [[ $first =~ ^[1-9][0-9]{0,3}$ ]]; then
		OMP_NUM_THREADS=$first
	elif [[ -n ${OMP_NUM_THREADS:-} ]]; then
		say "warning: OMP_NUM_THREADS is '$OMP_NUM_THREADS', no number: not used"
		unset OMP_NUM_THREADS
	fi
}

tasks_on_a_node() {	# the most tasks on any node of the allocation
	local count most=0 counts=()
	IFS=, read -ra counts <<<"${SLURM_TASKS_PER_NODE:-}"	# such as 2(x3),1
	for count in "${counts[@]}"; do
		count=${count%%(*}
		[[ ! $count =~ ^[1-9][0-9]*$ ]] || ((most = count > most ? count : most))
	done
	((most > 0)) || most=$(((SLURM_NTASKS + ${SLURM_JOB_NUM_NODES:-1} - 1) / ${SLURM_JOB_NUM_NODES:-1}))
	printf '%s\n' "$most"
}

# Divide the machine or the allocation among $1 processes at a time; empty: one per Slurm task, or
# one per GPU, or else $2. $3: threads of each, where more of them gain nothing (by the share). Sets
# slots, share (cores of each), threads and prefix (what starts one on its share).
share_out() {
	local wanted=$1 at_once gpus_each memory per_task=1 most
	prefix=()
	find_gpus
	read_threads
	if [[ -n ${SLURM_JOB_ID:-} && ${SLURM_NTASKS:-1} -gt 1 ]] && command -v srun >/dev/null; then
		share=${SLURM_CPUS_PER_TASK:-1}
		if [[ -n ${3:-} ]] && ((share > $3)); then
			per_task=$((share / $3))
			share=$3
		fi
		most=$((SLURM_NTASKS * per_task))
		slots=${wanted:-$most}
		((slots <= most)) || slots=$most
		prefix=(srun --exact --export=ALL --nodes=1 --ntasks=1 "--cpus-per-task=$share" --kill-on-bad-exit=0)
		[[ -z ${SLURM_STEP_ID:-} ]] || prefix+=(--overlap)
		at_once=$(($(tasks_on_a_node) * per_task))
		if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
			gpus_each=${SLURM_GPUS_PER_TASK:-$((SLURM_GPUS_ON_NODE / at_once))}
			gpus_each=${gpus_each##*:}	# such as a100:1
			if ((gpus_each == 0)); then
				say "warning: fewer GPUs than tasks on a node: the tasks take turns"
				gpus_each=1 at_once=$SLURM_GPUS_ON_NODE
			fi
		fi
		if [[ -n ${SLURM_MEM_PER_NODE:-} ]]; then	# else a step takes it all, and the next one waits
			memory=$((SLURM_MEM_PER_NODE / at_once))
			((memory == 0)) || prefix+=("--mem=${memory}M")
		fi
		[[ -z ${gpus_each:-} ]] || prefix+=("--gres=gpu:$gpus_each")
	else
		slots=$wanted
		if [[ -z $slots ]]; then
			slots=${#gpus[@]}
			((slots > 0)) || slots=$2
		fi
		share=$(($(cores) / slots))
		((share > 0)) || share=1
	fi
	threads=${3:-$share}
	threads=${OMP_NUM_THREADS:-$threads}
}

# Make the environment, so that a signal ends the making, and use it.
set_up() {
	local child status
	setsid bash ./setup_env.sh </dev/null &
	child=$!
	while status=0; wait "$child" || status=$?; kill -0 "$child" 2>/dev/null; do
		kill -s TERM -- "-$child" 2>/dev/null || true	# a signal came: it is what ended the waiting
	done
	[[ -z $stop_signal ]] || end_job 75
	((status == 0)) || end_job "$status"
	# shellcheck source=setup_env.sh
	source ./setup_env.sh || end_job 1
}

# ---------------------------------------------------------------- running stages

# Run the stages NAME..., at most $1 at a time. The script's function `stage_command NAME` sets the
# array `command` and, if need be, `stdout` (a file for the standard output) or `log` (empty: the
# stage speaks for itself). Returns when all have ended: 0, 75 (stopped, the same command resumes)
# or the status of the first that failed; a failure stops none that runs, but no more are started.
run_stages() {
	local count=$1 k status=0 ended all
	shift
	[[ -n $idle ]] || { exec {idle}<> <(:); } 2>/dev/null || idle=0
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
		if [[ $stop_signal == USR2 ]] && is_batch && ((SECONDS - stop_at > STOP_SEC)); then
			say "not stopped $STOP_SEC s after the warning: killed; what they saved before counts"
			for k in "${!child_pids[@]}"; do
				[[ -z ${child_pids[k]} ]] || kill -s KILL "${child_pids[k]}" 2>/dev/null || true
			done
			stop_at=$((SECONDS + 1000))
		fi
		all=${child_pids[*]}
		[[ -n ${all// /} ]] || break
		pause
	done
	[[ $status -ne 0 || $# -eq 0 ]] || status=75	# stopped before all were started
	return "$status"
}

pause() {	# a signal's handler speaks from within: nothing of it is silenced here
	if ((idle > 0)); then
		read -rt 0.2 -u "$idle" || (($? > 128)) || idle=0
	else
		sleep 0.2
	fi
}

make_said_dir() {	# not where the run lies, whose disk may be full
	said_dir=$(mktemp -d "${TMPDIR:-/tmp}/lungkit.XXXXXX" 2>/dev/null || mktemp -d /tmp/lungkit.XXXXXX 2>/dev/null ||
		mktemp -d "$log_dir/.said.XXXXXX")
	trap 'rm -rf "$said_dir"' EXIT
}

start_stage() {	# start_stage SLOT NAME
	local k=$1 name=$2 command=() stdout='' log=$log_dir/${2// /-}.log own settings
	stage_command "$name"
	child_names[k]=$name child_logs[k]=$log child_echo[k]='' child_own[k]=''
	printf -v "child_starts[$k]" '%(%s)T' -1
	if [[ -z $log ]]; then
		"${command[@]}" &
		child_pids[k]=$!
		return
	fi
	[[ -d $said_dir ]] || make_said_dir
	own=${said_dir:+$said_dir/$((++said))}	# its own: an orphan of another stage may still speak
	child_own[k]=$own
	: >"$own"
	settings=("OMP_NUM_THREADS=$threads")
	((${#prefix[@]} > 0 || ${#gpus[@]} == 0)) || settings+=("CUDA_VISIBLE_DEVICES=${gpus[k % ${#gpus[@]}]}")
	{
		export "${settings[@]}"
		exec "${prefix[@]}" "${command[@]}"
	} >>"${stdout:-$own}" 2>>"$own" &
	child_pids[k]=$!
	show "$name" "${child_pids[k]}" <"$own" >>"$log" &
	child_echo[k]=$!
}

# Show what a stage says, and add it to the log, which other jobs may write to as well. The stage itself
# writes to a file: a reader that a signal ends would take it along.
show() {	# show NAME PID: its lines, from the standard input to the standard output, until it has ended
	local line begun='' alive=yes
	trap '' USR2 TERM INT
	while [[ -n $alive ]]; do
		kill -0 "$2" 2>/dev/null || alive=''	# what it said before is read all the same
		while IFS= read -r line || [[ -z $alive && -n $begun$line ]]; do
			[[ $1 == options\ * ]] || printf '[%s] %s\n' "$1" "$begun$line" >&2
			printf '%s\n' "$begun$line" 2>/dev/null || true	# its disk may be full
			begun='' line=''
		done
		begun+=$line
		[[ -z $alive ]] || pause
	done
}

end_stage() {	# end_stage SLOT: 0, 75 or the stage's failure, which is told in one line
	local k=$1 status=0 name=${child_names[$1]} log=${child_logs[$1]} own=${child_own[$1]} last='' how='' oom=''
	wait "${child_pids[k]}" || status=$?
	child_pids[k]=''
	[[ -z ${child_echo[k]} ]] || wait "${child_echo[k]}" || true
	# a signal that comes before Python is ready to note it ends it at once: it has begun nothing
	[[ -z $stop_signal || $status -lt 128 ]] || status=75
	[[ -n $log ]] || return "$status"	# it has told of itself
	[[ $name != options\ * || $status -ne 1 ]] || status=0	# there is no data yet to be checked
	[[ ! $name =~ ^((cnn|unet).*)\ [0-9]+$ ]] || name=${BASH_REMATCH[1]}	# one line for all that share the work
	{ printf '%s\t%s\t%s\t%(%s)T\t%s\n' "$job_id" "$name" "${child_starts[k]}" -1 "$status" \
		>>"$log_dir/timings.tsv"; } 2>/dev/null || true
	if ((status != 0 && status != 75)); then
		last=$(grep -v '^[[:space:]]*$' "$own" | tail -n 1 || true)
		! grep -qiE 'oom[_-]kill' "$own" || oom=yes
	fi
	{ : >"$own"; } 2>/dev/null || true	# of no more use
	if ((status == 0 || status == 75)); then
		return "$status"
	elif [[ $status -eq 137 || -n $oom ]]; then	# its last line has nothing to do with it
		how="was killed (exit $status), probably out of memory: ask for more --mem, or fewer at a time"
	elif ((status > 128)) && kill -l "$((status - 128))" &>/dev/null; then
		how="was ended by SIG$(kill -l "$((status - 128))") (exit $status): ${last:-no message}"
	else
		how="failed (exit $status): ${last:-no message}"
	fi
	fault "stage $name $how (log: $log)"
	return "$status"
}

# Seconds in which each stage ran, once where several processes shared it: in this job, and in all so far.
print_timings() {
	local now
	say "seconds by stage (this run / with the runs before it)"
	sort -t $'\t' -k 3,3n "$log_dir/timings.tsv" | awk -F '\t' -v id="$job_id" '
		{
			key = $1 FS $2
			if (!($2 in seen)) { seen[$2]; order[++count] = $2 }
			begun = key in last && last[key] > $3 ? last[key] : $3
			if ($4 > begun) ran[key] += $4 - begun
			if (!(key in last) || $4 > last[key]) last[key] = $4
		}
		END {
			for (key in ran) {
				split(key, part, FS)
				all[part[2]] += ran[key]
				if (part[1] == id) now[part[2]] += ran[key]
			}
			for (k = 1; k <= count; k++) printf "  %-28s %7d / %7d\n", order[k], now[order[k]], all[order[k]]
		}' >&2
	printf -v now '%(%s)T' -1
	printf '  %-28s %7d\n' 'in all' "$((now - job_start))" >&2
}

# ---------------------------------------------------------------- signals and the end

note_signal() {	# note_signal NAME
	local k
	[[ -z $stop_signal ]] || return 0	# once: a stage that has saved no longer notes a second one
	stop_signal=$1
	stop_at=$SECONDS
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

# begin_job: call once the options are checked; afterwards every way out is end_job.
begin_job() {
	[[ -d $log_dir ]] || mkdir -p "$log_dir" || { fault "cannot make $log_dir: set RUN to a place that can be written"; exit 1; }
	trap 'note_signal USR2' USR2
	trap 'note_signal TERM' TERM
	trap 'note_signal INT' INT
	[[ -z ${LUNGKIT_JOB:-} ]] || return 0
	export LUNGKIT_SAVED=$log_dir/.saved.$job_id	# a stage that saves something new makes it
	rm -f "$LUNGKIT_SAVED"
	! is_batch || command -v scontrol >/dev/null ||
		say "warning: no scontrol on the PATH: before the time limit this job stops, but it cannot requeue itself"
}

end_job() {	# end_job STATUS
	local restarts=${SLURM_RESTART_COUNT:-0} saved=''
	trap '' USR2 TERM INT
	[[ -z ${LUNGKIT_JOB:-} ]] || exit "$1"	# part of a larger job, which ends it
	[[ ! -e $LUNGKIT_SAVED ]] || saved=yes
	rm -f "$LUNGKIT_SAVED"
	[[ $1 -eq 75 ]] || exit "$1"
	[[ -z $stop_signal ]] || say "all stopped $((SECONDS - (stop_at < SECONDS ? stop_at : SECONDS))) s after $stop_signal"
	if ! is_batch; then
		say "stopped; everything is saved: run the same command again to go on"
	elif [[ $stop_signal == TERM || $stop_signal == INT ]]; then
		say "stopped by $stop_signal; everything is saved: $(next_start)"
	elif ((restarts >= MAX_RESTARTS)); then
		fault "restarted $restarts times, MAX_RESTARTS is $MAX_RESTARTS: submit again with more --time"
		exit 1
	elif [[ -z $saved ]]; then
		fault "no progress since the last start: not requeued; give the job more --time"
		exit 1
	elif requeue; then
		say "requeued (restart $((restarts + 1)) of at most $MAX_RESTARTS)"
	fi
	exit 75
}

next_start() {	# what Slurm does next with a job that it has told to end
	local shown id=$SLURM_JOB_ID
	shown=" $(scontrol show job "$id" --oneliner 2>/dev/null || true) "
	if [[ $shown =~ \ Restarts=([0-9]+)\  ]] && ((BASH_REMATCH[1] > ${SLURM_RESTART_COUNT:-0})); then
		echo "Slurm has queued this job again and will go on with it; do not submit it a second time"
	elif [[ $shown =~ \ PreemptTime=[0-9] ]]; then
		echo "preempted: where 'squeue -j $id' still shows it, Slurm will go on with it; do not submit it a second time"
	elif [[ $shown == *' Restarts='* ]]; then
		echo "submit the same job again to go on"
	else
		echo "where 'squeue -j $id' still shows it, Slurm will go on with it; else submit the same job again"
	fi
}

requeue() {	# again and again for a minute: slurmctld may be away for a moment
	local pause said
	if ! command -v scontrol >/dev/null; then
		fault "no scontrol on the PATH to requeue this job by: submit the same job again to go on"
		return 1
	fi
	for pause in 5 10 15 30 0; do
		! said=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) || return 0
		[[ $said =~ (contact|connect|timed\ out|communicat) ]] || break
		sleep "$pause"
	done
	fault "scontrol requeue $SLURM_JOB_ID failed (${said//$'\n'/ }): submit the same job again to go on"
	return 1
}
