#!/usr/bin/env bash
#SBATCH --job-name=lungkit-compare
#SBATCH --time=12:00:00
#SBATCH --cpus-per-task=8
#SBATCH --signal=B:USR2@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Train the CNN N times on every dataset of a run, test each time on the same real images, and
# compare the accuracies pairwise by Wilcoxon rank-sum tests.
#
#   bash compare_models.sh 20               or, from the project directory,
#   sbatch --mem=32G compare_models.sh 50   one task, or one CNN per task and GPU:
#   sbatch --ntasks=4 --gpus-per-task=1 --mem-per-cpu=4G compare_models.sh 50
#   bash compare_models.sh 20 --dry-run     only check the options, and the data that is there
#
# A larger N adds only the missing repeats, a smaller one uses the first N. Running the same
# command again resumes. Exit statuses: 0 complete, 1 bad data or failed run, 2 bad options,
# 75 stopped, run it again. Options, by environment:

RUN=${RUN:-}				# run directory (runs/demo)
DATASETS=${DATASETS:-}			# names to compare, e.g. "real voronoi" (all in RUN/datasets)
PRESET=${PRESET:-}			# demo or full (the run's)
MODEL=${MODEL:-}			# small, resnet18 or convnext_tiny (by preset)
METRIC=${METRIC:-accuracy_real}		# or auroc, macro_f1, ...; accuracy_own: on each dataset's own test images
SEED=${SEED:-0}				# repeat i has seed SEED + i
BASELINE=${BASELINE-nuclei}		# classical baseline on the nuclei's features, from RUN/datasets/voronoi;
					# BASELINE= for none
WORKERS=${WORKERS:-}			# trainings at a time (one per Slurm task, GPU or core)
CNN_OPTIONS=${CNN_OPTIONS:-}		# more options of cnn_classify.py, e.g. "--steps 500"
TEST_OPTIONS=${TEST_OPTIONS:-}		# more options of wilcoxon_test.py, e.g. "--margin 0.01"
MAX_RESTARTS=${MAX_RESTARTS:-100}	# requeues by this job itself before it gives up
# and those of setup_env.sh: VENV PYTHON MODULES TORCH_INDEX_URL

[ -n "${BASH_VERSION:-}" ] || { echo "compare_models: error: this is no script of sh: run it by 'bash compare_models.sh'" >&2; exit 2; }
set -euo pipefail +o posix
unset CDPATH

# Under sbatch this file is a copy elsewhere: the project is where it was submitted.
for project in "$(dirname "${BASH_SOURCE[0]}")" "${SLURM_SUBMIT_DIR:-.}" . ''; do
	[[ ! -f $project/lungkit/job.sh ]] || break
done
if [[ -z $project ]]; then
	echo "compare_models: error: the project is not here: submit from its directory (cd PROJECT; sbatch compare_models.sh)" >&2
	exit 2
fi
project=$(cd "$project" && pwd)
# shellcheck source=lungkit/job.sh
source "$project/lungkit/job.sh"
job=compare_models
only_rank_0

dry_run=''
if [[ ${!#} == --dry-run ]]; then
	dry_run=yes
	set -- "${@:1:$#-1}"
fi
(($# <= 1)) || bad_option "usage: compare_models.sh [N] [--dry-run]; other options are environment variables, see its first lines"
run_dir=$(absolute "${RUN:-$project/runs/demo}")
PRESET=${PRESET:-$(kept preset)}
PRESET=${PRESET:-demo}
[[ $PRESET == demo || $PRESET == full ]] || bad_option "PRESET is '$PRESET': expected demo or full"
repeats=${1:-$([[ $PRESET == demo ]] && echo 6 || echo 20)}
check_positive N "$repeats"
((repeats > 1)) || bad_option "N is 1: a rank-sum test needs two or more repeats, and ten pairs need 6 to be significant"
[[ -z $WORKERS ]] || check_positive WORKERS "$WORKERS"
check_positive MAX_RESTARTS "$MAX_RESTARTS"
[[ $SEED =~ ^[0-9]+$ ]] || bad_option "SEED is '$SEED': expected a whole number"
[[ -z $BASELINE || $BASELINE == nuclei ]] || bad_option "BASELINE is '$BASELINE': expected nuclei, or nothing"
log_dir=$run_dir/logs
verdict=$log_dir/verdict.$job_id.txt	# another job may compare at the same time
cd "$project"

read -ra cnn_options <<<"$CNN_OPTIONS"
read -ra test_options <<<"$TEST_OPTIONS"
baseline=()	# one more row, where its features are at hand
names=(real)

# ---------------------------------------------------------------- what is started

stage_command() {	# sets what run_stages starts
	local name=${1#* }
	case $1 in
		sheet*) command=(python -m lungkit.compare.contact_sheet --dataset "$run_dir/datasets/$name"
			--output "$run_dir/sheets/$name.png") ;;
		check*) stage_command "$name"; command+=(--dry-run) ;;
		cnn*)	# identical processes share the trainings between them
			command=(python cnn_classify.py --data "${names[@]/#/$run_dir/datasets/}" --real "$run_dir/datasets/real"
				--results "$run_dir/results" --repeats "$repeats" --preset "$PRESET" --seed "$SEED"
				${MODEL:+--model "$MODEL"} "${cnn_options[@]}") ;;
		nuclei) command=(python nuclei_classify.py --features "$run_dir/datasets/voronoi" --real "$run_dir/datasets/real"
				--results "$run_dir/results" --repeats "$repeats" --seed "$SEED") ;;
		test) stdout=$verdict
			# what a run has no results of yet is no bad option: the dry run sees none of them
			command=(python wilcoxon_test.py "$run_dir/results${dry_run:+/.none}"
				--output "$run_dir/comparison" --metric "$METRIC")
			[[ -n $dry_run ]] ||
				command+=(--datasets "${names[@]}" "${baseline[@]}" --repeats "$repeats" --sheets "$run_dir/sheets")
			command+=("${test_options[@]}") ;;
	esac
}

find_datasets() {	# sets names: the datasets there are, of DATASETS where it is set
	local manifest name
	names=()
	for manifest in "$run_dir"/datasets/*/dataset.json; do
		name=$(basename "$(dirname "$manifest")")
		[[ ! -f $manifest || (-n $DATASETS && " $DATASETS " != *" $name "*) ]] || names+=("$name")
	done
}

# The stages' dry runs, of what data there is: a typo ends here, with its line.
check_stages() {	# check_stages NAME...
	local name status said
	for name in "$@"; do
		[[ $name != 'check nuclei' || -n $BASELINE ]] || continue
		stage_command "$name"
		status=0
		said=$("${command[@]}" 2>&1 >/dev/null) || status=$?
		if ((status == 2)) || { ((status != 0)) && [[ $name == *cnn && -f $run_dir/datasets/real/dataset.json ]]; }; then
			fault "$name failed (exit $status): $(tail -n 1 <<<"$said")"
			exit "$status"
		fi
	done
}

if [[ -n $dry_run ]]; then
	# shellcheck source=setup_env.sh
	[[ -n ${LUNGKIT_JOB:-} ]] || source ./setup_env.sh
	find_datasets	# one that was renamed or altered is told now, not after the arms' trainings
	((${#names[@]} > 0)) || names=(real)
	check_stages 'check cnn' 'check nuclei' 'check test'
	exit 0
fi

# ---------------------------------------------------------------- the datasets

[[ -d $run_dir/datasets ]] || { fault "RUN=$run_dir holds no datasets: make them with run_pipeline.slurm first"; exit 1; }
if [[ -n $DATASETS ]]; then
	read -ra names <<<"$DATASETS"
else
	find_datasets
fi
for name in real "${names[@]}"; do
	[[ -f $run_dir/datasets/$name/dataset.json ]] || { fault "$run_dir/datasets/$name is not a complete dataset: make it with its stage first (found: ${names[*]:-none})"; exit 1; }
done
((${#names[@]} > 1)) || { fault "$run_dir/datasets holds one dataset only (${names[*]}): a comparison needs two or more"; exit 1; }

if [[ -n $BASELINE && " ${names[*]} " == *' voronoi '* && -f $run_dir/datasets/voronoi/image_features.csv ]]; then
	baseline=(nuclei)
	[[ " ${names[*]} " != *' nuclei '* ]] || bad_option "$run_dir/datasets/nuclei has the name of the baseline, where its results lie: make that dataset under another name, or set BASELINE="
fi

begin_job
[[ -n ${LUNGKIT_JOB:-} ]] || set_up
find_gpus
go_by_device
each=''
[[ $device == cuda ]] || each=1	# on a CPU the fastest, and the same bytes for any WORKERS
share_out "$WORKERS" "$(cores)" "$each"
go_by_threads threads_cnn
((slots <= repeats * ${#names[@]})) || slots=$((repeats * ${#names[@]}))
dry_run=yes check_stages 'check test'	# METRIC and TEST_OPTIONS are used after all trainings

# ---------------------------------------------------------------- N trainings of each

stages=()
for name in "${names[@]}"; do
	[[ $run_dir/sheets/$name.png -nt $run_dir/datasets/$name/dataset.json ]] || stages+=("sheet $name")
done
last=$(printf 'replicate_000/repeat_%04d.json' "$((repeats - 1))")
for name in "${names[@]}"; do
	[[ -f $run_dir/results/$name/$last ]] || { stages+=('check cnn'); break; }
done
run_stages "$slots" "${stages[@]}" || end_job $?

kept device "$device" >/dev/null
keep_threads threads_cnn
say "$repeats trainings on each of ${#names[@]} datasets (${names[*]}), $slots at a time with $threads thread(s) each"
stages=()
for ((k = 1; k <= slots; k++)); do stages+=("cnn $k"); done
run_stages "$slots" "${baseline[@]}" "${stages[@]}" || end_job $?

status=0
run_stages 1 test || status=$?
if ((status != 0)); then
	rm -f "$verdict" "$log_dir/verdict.txt"	# half of one, and that of other results
	end_job "$status"
fi
print_timings
cat "$verdict"
mv -f "$verdict" "$log_dir/verdict.txt"
end_job 0
